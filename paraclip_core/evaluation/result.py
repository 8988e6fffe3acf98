"""One model's result in the formats of CLIP_benchmark and mteb."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paraclip_core.evaluation.base import Measured
from paraclip_core.evaluation.benchmarks import Metric, find_benchmark

DIGITS = 8
"""Decimals of fractions in results."""
MTEB_VERSION = "2.26.24"
"""The release of mteb whose format is used."""
MTEB_NAMES = {
    "stsb": "STSBenchmark",
    "stsbenchmark": "STSBenchmark",
    "sick": "SICK-R",
    "sickr": "SICK-R",
    **{f"sts{year}": f"STS{year}" for year in range(12, 17)},
}
"""mteb's task names, by the usual names of benchmarks."""


@dataclass(frozen=True)
class Provenance:
    """What a result states besides its figures, unless an artifact's manifest does."""

    revision: str
    """Hash of all files that the benchmark read."""
    seconds: float | None = None
    """Duration of the measurement."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the packages involved."""


def result_json(
    kind: str, benchmark: str, model: str, pretrained: str, measured: Measured, provenance: Provenance | None = None
) -> dict[str, Any]:
    """One model's result as plain values, in CLIP_benchmark's or mteb's format: both hold fractions, not percent.

    `protocol` is our addition: it describes what was measured over what. `pretrained` names the model's weights: an
    artifact's fingerprint or a reference. Without `provenance`, revision, versions and time are left out, or null:
    times differ between runs, and the bytes of an artifact must not.
    """
    row = find_benchmark(kind)
    values = {name: round(sample.statistic(), DIGITS) + 0.0 for name, sample in measured.samples.items()}
    weights, protocol = {"model": model, "pretrained": pretrained}, {"protocol": dict(measured.notes)}
    versions = {} if provenance is None else {"versions": dict(provenance.versions)}
    if row.mteb:
        main = values[row.metrics[0].name]
        score = {"main_score": main, "cosine_spearman": main, "hf_subset": "default", "languages": ["eng-Latn"]}
        return {
            "task_name": benchmark if provenance is None else mteb_name(kind, benchmark),
            "dataset_revision": provenance and provenance.revision,
            "mteb_version": provenance and MTEB_VERSION,
            "scores": {"test": [score]},
            "evaluation_time": provenance and provenance.seconds,
            "kg_co2_emissions": None,
            **weights,
            **versions,
            **protocol,
        }
    source = {"dataset_revision": provenance.revision, "evaluation_time": provenance.seconds} if provenance else {}
    return {
        "dataset": benchmark,
        **weights,
        "task": row.task or row.title,
        "metrics": {_published(row.metric(name), name): value for name, value in values.items()},
        "language": measured.notes.get("language", "en"),
        **versions,
        **protocol,
        **source,
    }


def mteb_name(kind: str, benchmark: str) -> str:
    """mteb's name for a benchmark, or the benchmark's own if mteb has none."""
    plain = "".join(letter for letter in benchmark.casefold() if letter.isalnum())
    return "SICK-R" if kind == "sick" else MTEB_NAMES.get(plain, benchmark)


def _published(metric: Metric | None, name: str) -> str:
    if metric is None or not metric.published:
        return name
    _, at, part = name.partition("@")
    return metric.published + at + part if metric.by_part else metric.published
