"""The registry of benchmarks: what each one measures, and how its published files are loaded.

A benchmark is a :class:`Benchmark` and a row of :data:`BENCHMARKS`. All other code reads the row.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from paraclip_core.errors import BenchmarkError
from paraclip_core.options import Options, import_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from paraclip_core.evaluation.base import Captions, Encoder, ImagePool, Measured, Queries

_IN = "paraclip_core.evaluation.benchmarks"
BENCHMARKS = {
    "paraphrased_retrieval": f"{_IN}.paraphrased:PARAPHRASED_RETRIEVAL",
    "query_pairs": f"{_IN}.query_pairs:QUERY_PAIRS",
    "query_log": f"{_IN}.query_log:QUERY_LOG",
    "retrieval": f"{_IN}.retrieval:RETRIEVAL",
    "sts": f"{_IN}.sts:STS",
    "sick": f"{_IN}.sts:SICK",
    "sts7": f"{_IN}.sts:STS7",
    "sugarcrepe": f"{_IN}.choice:SUGARCREPE",
    "sugarcrepe_pp": f"{_IN}.choice:SUGARCREPE_PP",
    "vg_relation": f"{_IN}.choice:VG_RELATION",
    "vg_attribution": f"{_IN}.choice:VG_ATTRIBUTION",
    "zeroshot_classification": f"{_IN}.zeroshot:ZEROSHOT_CLASSIFICATION",
}
"""The row of each `evaluate.benchmarks[].kind`, imported on use."""

RECALL_DEPTHS = (1, 5, 10)
"""The k of recall@k."""


@dataclass(frozen=True)
class Metric:
    """A figure that a benchmark reports."""

    name: str
    """Its name in tables, filters and results."""
    title: str = ""
    """Its name for people; empty: the name with spaces."""
    unit: str = "%"
    """`%`: samples are fractions and figures are 100 times as large; otherwise figures equal the samples."""
    lower_is_better: bool = False
    decimals: int = 1
    """Decimals of the figure on the report page; a difference has one more."""
    headline: bool = False
    """Shown at the top of the page, and first in tables."""
    by_part: bool = False
    """Whether it is also measured for parts, such as `accuracy@add_obj`."""
    part: str = ""
    """The part that it is measured for; empty: all cases."""
    weighed_by: str = ""
    """The metric that combines it with another one, so that by itself it is neither gain nor loss in a verdict."""

    @property
    def scale(self) -> float:
        """The factor from a sample's statistic to the figure."""
        return 100.0 if self.unit == "%" else 1.0

    @property
    def notes(self) -> list[str]:
        """What a reader must know besides the name: a unit other than percent, and whether lower is better."""
        return ([] if self.unit == "%" else [self.unit]) + (["lower is better"] if self.lower_is_better else [])

    @property
    def words(self) -> str:
        """Its name in a sentence."""
        head, at, part = self.name.partition("@")
        return self.title or head.replace("_", " ") + at + part

    @property
    def label(self) -> str:
        return ", ".join([self.words, *self.notes])

    @property
    def direction(self) -> str:
        return "lower is better" if self.lower_is_better else "higher is better"

    @property
    def arrow(self) -> str:
        return "↓" if self.lower_is_better else "↑"


@dataclass(frozen=True)
class Stored:
    """Captions of a run's evaluation split, and its image features."""

    captions: Captions
    pool: Callable[[Sequence[str]], ImagePool]
    """Returns the pool of the given images that have features."""


@dataclass(frozen=True)
class Source:
    """The source that a benchmark is read from."""

    path: Path | None
    """File or folder; None: the stored split's captions."""
    stored: Stored | None = None
    """The data that a run has ingested; None outside a run."""
    split: str | None = None
    """Split to read if published files have several; None: the test split, or else val."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """`evaluate.benchmarks[].options`."""
    images: Path | None = None
    """Folder, tar or Parquet with the images, if they are not next to the path."""

    def need_path(self) -> Path:
        """The path, which this benchmark requires."""
        if self.path is None:
            raise BenchmarkError("it needs a path to its published files")
        return self.path


@dataclass(frozen=True)
class Task:
    """A loaded benchmark."""

    measure: Callable[[Encoder], Measured]
    per_query: Callable[[Measured, Measured], pa.Table] | None = None
    """Makes the table of all query pairs from the base and tuned outcomes (:data:`paraclip_core.tables.PER_QUERY`)."""
    pairs: Sequence[str] = ()
    """The image of each query pair, if there are pairs."""
    queries: Queries | None = None
    """Its plain queries, if it searches images: what users would type, not their paraphrases."""


@dataclass(frozen=True)
class Benchmark:
    """A kind of benchmark."""

    title: str
    metrics: tuple[Metric, ...]
    load: Callable[[Source], Task]
    """Loads it; raises `BenchmarkError` if it cannot be measured, so that this is known before a model is trained."""
    files: Callable[[Path, str | None], list[Path]] | None = None
    """Every file that it reads at a path for a split; None: the file itself and the images next to it, or all files in
    the folder."""
    aliases: tuple[str, ...] = ()
    """Other names for its kind on the command line."""
    searches_images: bool = False
    """Whether it searches images: without a path those of the stored split; `notes["images"]` is their number."""
    resampled: str = "cases"
    """What intervals resample: images, queries or cases."""
    searches_stored: bool = False
    """Whether, given a path, it searches any images that a run has ingested."""
    hub_task: str = "image-text-retrieval"
    """The Hugging Face hub's name for the task, for model cards."""
    options: type[Options] | None = None
    """What `evaluate.benchmarks[].options` may hold; None: nothing."""
    needs_images: bool = False
    """Whether it reads images in addition to its path, so that `images` may name their location."""
    source: str = ""
    """Where its files are published."""

    def metric(self, name: str) -> Metric | None:
        """The row's metric with this name, or with this name and a part; None if there is none."""
        head, _, part = name.rpartition("@")
        for metric in self.metrics:
            if metric.name == name:
                return metric
            if metric.by_part and metric.name == head:
                title = metric.title and f"{metric.title.partition(',')[0]}@{part}"
                return replace(metric, name=name, title=title, part=part, headline=False)
        return None


def find_benchmark(kind: str) -> Benchmark:
    """The row of a kind."""
    return import_path(BENCHMARKS[kind], f"benchmark {kind}", "a Benchmark")


def describe_benchmark(kind: str) -> Benchmark:
    """The row of a kind measured earlier; a bare one if this version does not measure it."""
    if kind in BENCHMARKS:
        return find_benchmark(kind)
    return Benchmark(kind, (), lambda source: find_benchmark(kind).load(source))


def metric_of(kind: str, name: str) -> Metric:
    """The metric of this name; a bare one if this version does not measure it."""
    return describe_benchmark(kind).metric(name) or Metric(name)


def arrow_of(name: str) -> str:
    """An arrow for the better direction of metrics of this name; empty if there is none or they disagree."""
    metrics = (find_benchmark(kind).metric(name) for kind in BENCHMARKS)
    arrows = {metric.arrow for metric in metrics if metric is not None}
    return arrows.pop() if len(arrows) == 1 else ""


def headline_metrics() -> list[str]:
    """Distinct names of the benchmarks' headline metrics, the most important first."""
    metrics = (metric for kind in BENCHMARKS for metric in find_benchmark(kind).metrics if metric.headline)
    return list(dict.fromkeys(metric.name for metric in metrics))


def check_options(kind: str, options: Mapping[str, Any]) -> None:
    """Check that a kind accepts these options; a ValueError names the one that it does not."""
    taken = find_benchmark(kind).options
    if taken is None:
        raise ValueError(f"{kind} has no options")
    try:
        taken.model_validate(dict(options))
    except ValidationError as error:
        problems = [f"options.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)]
        raise ValueError(f"{'; '.join(problems)}; {kind} takes {', '.join(taken.model_fields)}") from error


def check_metric(name: str) -> str:
    """Return ``kind/metric`` unchanged; raises ValueError if no benchmark has such a metric."""
    kind, _, metric = name.partition("/")
    if kind in BENCHMARKS and find_benchmark(kind).metric(metric):
        return name
    names = sorted(f"{kind}/{metric.name}" for kind in BENCHMARKS for metric in find_benchmark(kind).metrics)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    meant = f"did you mean {close[0]}?" if close else f"known are {', '.join(names)}"
    raise ValueError(f"no benchmark measures {name!r}, written kind/metric; {meant}")


def recalls(name: str, title: str, headline: int = 0, by_part: bool = False) -> tuple[Metric, ...]:
    """Recall metrics at all :data:`RECALL_DEPTHS`; the one at `headline` is a headline."""
    return tuple(Metric(f"{name}@{k}", f"{title}@{k}", headline=k == headline, by_part=by_part) for k in RECALL_DEPTHS)
