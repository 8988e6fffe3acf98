"""One model's result on one benchmark, in the shapes that CLIP_benchmark and mteb write.

Both shapes hold fractions, not percent. `protocol` is ours: it says what was counted over what.
"""

from __future__ import annotations

from typing import Any

from paraclip_core.evaluation.samples import Measured

__all__ = ["result_json"]

CLIP_BENCHMARK_NAMES = {
    "text_to_image_recall": "image_retrieval_recall",
    "image_to_text_recall": "text_retrieval_recall",
    "accuracy": "acc",
}
TASKS = {
    "retrieval": "zeroshot_retrieval",
    "paraphrased_retrieval": "paraphrased_retrieval",
    "sugarcrepe": "image_caption_selection",
}
DIGITS = 8


def result_json(kind: str, benchmark: str, model: str, pretrained: str, measured: Measured) -> dict[str, Any]:
    """The result as plain values.

    Args:
        kind: the benchmark's kind; sts and sick give mteb's shape, others CLIP_benchmark's.
        benchmark: the benchmark's name.
        model: which model, base or tuned.
        pretrained: its weights: an artifact's fingerprint or a reference.
        measured: what was measured.
    """
    values = {name: round(sample.statistic(), DIGITS) + 0.0 for name, sample in measured.samples.items()}
    if kind in ("sts", "sick"):
        return _mteb(benchmark, model, pretrained, values["spearman"], measured)
    return {
        "dataset": benchmark,
        "model": model,
        "pretrained": pretrained,
        "task": TASKS[kind],
        "metrics": {_clip_benchmark_name(name): value for name, value in values.items()},
        "language": "en",
        "protocol": dict(measured.notes),
    }


def _mteb(benchmark: str, model: str, pretrained: str, spearman: float, measured: Measured) -> dict[str, Any]:
    scores = {"main_score": spearman, "cosine_spearman": spearman, "hf_subset": "default", "languages": ["eng-Latn"]}
    return {
        "task_name": benchmark,
        "dataset_revision": None,
        "mteb_version": None,
        "scores": {"test": [scores]},
        # Times differ from run to run, and a result's bytes must not.
        "evaluation_time": None,
        "kg_co2_emissions": None,
        "model": model,
        "pretrained": pretrained,
        "protocol": dict(measured.notes),
    }


def _clip_benchmark_name(metric: str) -> str:
    for ours, theirs in CLIP_BENCHMARK_NAMES.items():
        if metric.startswith(f"{ours}@") or metric == ours:
            return theirs + metric.removeprefix(ours)
    return metric
