"""The metrics of each kind of benchmark, by the names that tables, gates and results use."""

from __future__ import annotations

import difflib
from typing import Literal, get_args

__all__ = ["METRICS", "RECALL_DEPTHS", "BenchmarkKind", "check_metric", "lower_is_better"]

BenchmarkKind = Literal["paraphrased_retrieval", "retrieval", "sts", "sick", "sugarcrepe"]

RECALL_DEPTHS = (1, 5, 10)
"""The k of recall@k."""
SIDES = ("caption_text_to_image", "rewording_text_to_image")

METRICS: dict[BenchmarkKind, tuple[str, ...]] = {
    "paraphrased_retrieval": ("ao@10", "js@10", *(f"{side}_recall@{k}" for side in SIDES for k in RECALL_DEPTHS)),
    "retrieval": tuple(f"{way}_recall@{k}" for way in ("text_to_image", "image_to_text") for k in RECALL_DEPTHS),
    "sts": ("spearman",),
    "sick": ("spearman",),
    "sugarcrepe": ("accuracy", "text_only_closeness"),
}
"""What each kind measures. SugarCrepe's figures also come by category, as ``accuracy@add_obj``."""
LOWER_IS_BETTER = ("text_only_closeness",)


def check_metric(name: str) -> str:
    """``kind/metric`` as it is.

    Raises:
        ValueError: no benchmark has such a metric.
    """
    kind, _, metric = name.partition("/")
    known = {f"{k}/{m}" for k in get_args(BenchmarkKind) for m in METRICS[k]}
    if name in known or (kind == "sugarcrepe" and metric.partition("@")[0] in METRICS["sugarcrepe"]):
        return name
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    meant = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
    raise ValueError(f"no benchmark measures {name!r}, written kind/metric; {meant}")


def lower_is_better(metric: str) -> bool:
    """Whether a metric, or a category of it, is the better the lower it is."""
    return metric.partition("@")[0] in LOWER_IS_BETTER
