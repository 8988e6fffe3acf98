"""What a benchmark gives for one model: the values behind each figure, so that a delta can be given an interval.

They are kept as arrays while a stage works, as a table (:data:`paraclip_core.tables.SAMPLES`) and as a result in the
shapes that CLIP_benchmark and mteb write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paraclip_core.evaluation.base import Measured, Sample
from paraclip_core.evaluation.benchmarks import Metric, find_benchmark
from paraclip_core.tables import SAMPLES

DIGITS = 8
"""Decimals of a fraction that results hold."""
MTEB_VERSION = "2.26.24"
"""The release of mteb whose format results have."""
MTEB_NAMES = {
    "stsb": "STSBenchmark",
    "stsbenchmark": "STSBenchmark",
    "sick": "SICK-R",
    "sickr": "SICK-R",
    **{f"sts{year}": f"STS{year}" for year in range(12, 17)},
}
"""mteb's names of the tasks that benchmarks are mostly called after."""


def to_arrays(measured: Measured) -> dict[str, NDArray[Any]]:
    """Values and ranked lists as named arrays (for an .npz file); notes are not part of it."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, sample in measured.samples.items():
        arrays[f"values:{name}"] = sample.values
        arrays[f"clusters:{name}"] = sample.clusters
        if sample.gold is not None:
            arrays[f"gold:{name}"] = sample.gold
    for name, ranked in measured.ranked.items():
        arrays[f"ranked:{name}"] = ranked
    return arrays


def from_arrays(arrays: Mapping[str, NDArray[Any]], notes: Mapping[str, Any]) -> Measured:
    """The reverse of :func:`to_arrays`; the metrics keep their order."""
    samples = {
        name.removeprefix("values:"): Sample(
            values,
            arrays["clusters:" + name.removeprefix("values:")],
            arrays.get("gold:" + name.removeprefix("values:")),
        )
        for name, values in arrays.items()
        if name.startswith("values:")
    }
    ranked = {name.removeprefix("ranked:"): rows for name, rows in arrays.items() if name.startswith("ranked:")}
    return Measured(samples, notes, ranked)


def to_table(base: Measured, tuned: Measured) -> pa.Table:
    """The values behind both models' figures, one row for each metric and query (:data:`SAMPLES`)."""
    columns: dict[str, list[Any]] = {name: [] for name in SAMPLES.names}
    for metric, sample in base.samples.items():
        count = len(sample.values)
        gold = pa.nulls(count, pa.float64()) if sample.gold is None else pa.array(sample.gold)
        parts = (pa.repeat(metric, count), pa.array(sample.clusters), gold, pa.array(sample.values))
        for column, part in zip(columns.values(), (*parts, pa.array(tuned.samples[metric].values)), strict=True):
            column.append(part)
    # Strings become dictionaries here, once for all metrics.
    chunks = [pa.chunked_array(parts, pa.string() if name == "metric" else None) for name, parts in columns.items()]
    return pa.Table.from_arrays(chunks, SAMPLES.names).cast(SAMPLES)


def from_table(table: pa.Table) -> tuple[Measured, Measured]:
    """The base's and the tuned model's samples from :func:`to_table`; notes and ranked lists are not part of it."""
    base: dict[str, Sample] = {}
    tuned: dict[str, Sample] = {}
    plain = table.set_column(0, "metric", table["metric"].cast(pa.string()))
    for metric in plain["metric"].unique().to_pylist():
        rows = plain.filter(pc.field("metric") == metric)
        gold = None if rows["gold"].null_count else rows["gold"].to_numpy()
        for samples, column in ((base, "base"), (tuned, "tuned")):
            samples[metric] = Sample(rows[column].to_numpy(), rows["cluster"].to_numpy(), gold)
    return Measured(base, {}), Measured(tuned, {})


@dataclass(frozen=True)
class Provenance:
    """What a result says beside its figures, where it is no artifact, whose manifest says it."""

    revision: str
    """Hash of all files that the benchmark read."""
    seconds: float | None = None
    """What measuring took."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Packages that took part."""


def result_json(
    kind: str, benchmark: str, model: str, pretrained: str, measured: Measured, provenance: Provenance | None = None
) -> dict[str, Any]:
    """One model's result as plain values, in CLIP_benchmark's or mteb's shape: both hold fractions, not percent.

    `protocol` is ours: it says what was counted over what. `pretrained` are the model's weights: an artifact's
    fingerprint or a reference. Without `provenance`, revision, versions and time are left out, or null.
    """
    row = find_benchmark(kind)
    values = {name: round(sample.statistic(), DIGITS) + 0.0 for name, sample in measured.samples.items()}
    about: dict[str, Any] = {"model": model, "pretrained": pretrained}
    if provenance is not None:
        about |= {"versions": dict(provenance.versions)}
    about |= {"protocol": dict(measured.notes)}
    if row.mteb:
        name = benchmark if provenance is None else mteb_name(kind, benchmark)
        return _mteb_json(name, values[row.metrics[0].name], about, provenance)
    metrics = {_published(row.metric(name), name): value for name, value in values.items()}
    head = {"dataset": benchmark, "model": about.pop("model"), "pretrained": about.pop("pretrained")}
    if provenance is not None:
        about |= {"dataset_revision": provenance.revision, "evaluation_time": provenance.seconds}
    language = measured.notes.get("language", "en")
    return {**head, "task": row.task or row.title, "metrics": metrics, "language": language, **about}


def mteb_name(kind: str, benchmark: str) -> str:
    """What mteb calls a benchmark of this name; its own name where mteb has none."""
    plain = "".join(letter for letter in benchmark.casefold() if letter.isalnum())
    return "SICK-R" if kind == "sick" else MTEB_NAMES.get(plain, benchmark)


def _mteb_json(task: str, main: float, about: Mapping[str, Any], provenance: Provenance | None) -> dict[str, Any]:
    score = {"main_score": main, "cosine_spearman": main, "hf_subset": "default", "languages": ["eng-Latn"]}
    return {
        "task_name": task,
        "dataset_revision": provenance and provenance.revision,
        "mteb_version": provenance and MTEB_VERSION,
        "scores": {"test": [score]},
        # Times differ from run to run, and the bytes of an artifact must not.
        "evaluation_time": provenance and provenance.seconds,
        "kg_co2_emissions": None,
        **about,
    }


def _published(metric: Metric | None, name: str) -> str:
    if metric is None or not metric.published:
        return name
    _, at, part = name.partition("@")
    return metric.published + at + part if metric.by_part else metric.published
