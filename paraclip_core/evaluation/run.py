"""Measure models on a list of benchmarks and compare them; and what is kept of a benchmark's outcome.

An outcome is kept as arrays while a stage works, as a table (:data:`paraclip_core.tables.SAMPLES`) and as a result in
the shapes that CLIP_benchmark and mteb write.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paraclip_core.config import LONGEST_NAME, BenchmarkOptions, EvaluateOptions
from paraclip_core.errors import BenchmarkError, ConfigError, InputError, ParaclipError
from paraclip_core.evaluation.base import Box, Encoder, Measured
from paraclip_core.evaluation.benchmarks import BENCHMARKS, Metric, Source, Stored, Task, find_benchmark
from paraclip_core.evaluation.compare import Comparison, Outcome, compare
from paraclip_core.evaluation.metrics import Sample
from paraclip_core.evaluation.published import archives, beside
from paraclip_core.paths import user_path
from paraclip_core.progress import Fact, Progress, silent
from paraclip_core.tables import SAMPLES

if TYPE_CHECKING:
    from PIL import Image

    from paraclip_core.clip.images import ImageArchive
    from paraclip_core.clip.model import ClipModel

TEXTS = 4096
"""Texts that are encoded at once."""
IMAGES = 64
"""Images after which progress is reported."""

Features: TypeAlias = "NDArray[np.float16]"
FeatureCache = Callable[[str, Path, Sequence[str], "Sequence[Box] | None", Callable[[], Features]], Features]
"""Called with what computes, archive, names, boxes and the computation: gives earlier features, or computes them."""
OutcomeCache = Callable[[str, str, Callable[[], Measured]], Measured]
"""Called with model, benchmark and the computation: gives an earlier outcome, or computes and keeps it."""
Outcomes = Mapping[tuple[str, str], Measured]
"""By benchmark and model."""

UNSAFE = set('/\\:*?"<>|\0')


@dataclass(frozen=True)
class Evaluation:
    """A base and a tuned model on every benchmark, and what follows."""

    outcomes: tuple[Outcome, ...]
    per_query: Mapping[str, pa.Table]
    """Tables of all queries, by benchmark."""
    comparison: Comparison


@dataclass(frozen=True)
class Compared:
    """A base compared with each of the other models."""

    evaluations: Mapping[str, Evaluation]
    """By the other model's name."""
    seconds: Mapping[tuple[str, str], float]
    """What measuring took, by benchmark and model."""


def compare_models(
    models: Mapping[str, str],
    benchmarks: Sequence[BenchmarkOptions],
    split: str | None = None,
    device: str = "auto",
    progress: Progress = silent,
    keep: FeatureCache | None = None,
) -> Compared:
    """Compare a model (the first) with each of the others on benchmarks with a path of their own, outside any run.

    Images are encoded by each model's own image tower, once where towers are the same; `keep` has features of earlier
    calls.
    """
    check_names(benchmarks)
    tasks: list[Prepared] = []
    skipped: dict[str, str] = {}
    for benchmark in benchmarks:
        path, images = (None if at is None else user_path(at) for at in (benchmark.path, benchmark.images))
        if reason := left_out(benchmark, path, images):
            skipped[benchmark.name] = reason
        else:
            tasks.append(prepare(benchmark, path, None, split, images))
    seconds: dict[tuple[str, str], float] = {}

    def timed(model: str, benchmark: str, compute: Callable[[], Measured]) -> Measured:
        began = time.monotonic()
        measured = compute()
        seconds[benchmark, model] = round(time.monotonic() - began, 2)
        return measured

    encoders = {name: ModelEncoder(reference, device, keep) for name, reference in models.items()}
    outcomes = measure(encoders, tasks, timed, progress)
    base, *others = models
    rule = EvaluateOptions()
    return Compared({other: evaluate(tasks, outcomes, base, other, rule, skipped) for other in others}, seconds)


def measure(
    models: Mapping[str, Encoder], tasks: Sequence[Prepared], keep: OutcomeCache, progress: Progress = silent
) -> Outcomes:
    """Measure every model on every task."""
    outcomes: dict[tuple[str, str], Measured] = {}
    pairs = [(task, name) for task in tasks for name in models]
    began = time.monotonic()
    for position, (task, name) in enumerate(pairs):
        encoder, facts = models[name], {"benchmark": task.name, "model": name}

        def report(what: str, done: int, of: int, position: int = position, facts: dict[str, str] = facts) -> None:
            # Texts are quick beside images.
            part = position + (0.2 * done / of if what == "texts" else 0.2 + 0.8 * done / of)
            left: dict[str, Fact] = {}
            if part >= 0.2:
                left["eta_seconds"] = round((time.monotonic() - began) * (len(pairs) - part) / part)
            progress(position, len(pairs), **facts, **{what: f"{done} of {of}"}, **left)

        progress(position, len(pairs), **facts)
        if isinstance(encoder, ModelEncoder):
            encoder.watch = report
        outcomes[task.name, name] = keep(name, task.name, lambda task=task, encoder=encoder: task.measure(encoder))
    progress(len(pairs), len(pairs))
    return outcomes


def evaluate(
    tasks: Sequence[Prepared],
    outcomes: Outcomes,
    base: str,
    tuned: str,
    options: EvaluateOptions,
    skipped: Mapping[str, str],
) -> Evaluation:
    """Compare two of the models that were measured; `skipped` benchmarks are named with the reason."""
    pairs = paired(tasks, outcomes, base, tuned)
    tables = {
        task.name: task.task.per_query(pair.base, pair.tuned)
        for task, pair in zip(tasks, pairs, strict=True)
        if task.task.per_query is not None
    }
    return Evaluation(pairs, tables, compare(pairs, options, skipped))


def paired(tasks: Sequence[Prepared], outcomes: Outcomes, base: str, tuned: str) -> tuple[Outcome, ...]:
    """What two models came to, benchmark by benchmark."""
    return tuple(Outcome(task.name, task.kind, outcomes[task.name, base], outcomes[task.name, tuned]) for task in tasks)


class ModelEncoder:
    """A model that is measured, loaded when it is first needed."""

    # What loads models imports torch, which takes seconds, and a run that is planned measures nothing.

    def __init__(self, reference: str, device: str = "auto", keep: FeatureCache | None = None) -> None:
        """`reference` as :func:`paraclip_core.clip.load.load_clip` takes it; `keep` has features of earlier runs."""
        self.reference, self._device, self._keep = reference, device, keep
        self.watch: Callable[[str, int, int], None] = lambda what, done, of: None
        """Called now and then with how many of the texts or images of a call are encoded."""

    @cached_property
    def clip(self) -> ClipModel:
        from paraclip_core.clip.load import load_clip
        from paraclip_core.clip.model import pick_device

        return load_clip(self.reference, pick_device(self._device))

    @property
    def tower(self) -> str:
        """Hash of image tower and preprocessing, and how the tower computes."""
        return self._tower

    # What is cached is no property to a type checker, and the protocol has one.
    @cached_property
    def _tower(self) -> str:
        from paraclip_core.clip.model import image_architecture, image_tower_hash, preprocess_hash

        architecture = json.dumps(image_architecture(self.clip), sort_keys=True)
        return f"{image_tower_hash(self.clip)}-{preprocess_hash(self.clip)}-{architecture}"

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts in blocks: float32 [n, d], rows of length 1."""
        from paraclip_core.clip.encode import encode_texts

        blocks = [np.zeros((0, self.clip.embed_dim), np.float32)]
        for start in range(0, len(texts), TEXTS):
            blocks.append(encode_texts(self.clip, texts[start : start + TEXTS]))
            self.watch("texts", min(start + TEXTS, len(texts)), len(texts))
        return np.concatenate(blocks)

    def images(self, archive: Path, names: Sequence[str], boxes: Sequence[Box] | None = None) -> Features:
        """Encode images, or a part of each, of a tar, folder or Parquet file: float16 [n, d]."""
        from paraclip_core.clip.encode import encode_images
        from paraclip_core.clip.images import ImageArchive

        def opened(images: ImageArchive) -> Iterator[Image.Image]:
            for number, name in enumerate(names, 1):
                image = images.open(name)
                yield image if boxes is None else image.crop(boxes[number - 1])
                if number % IMAGES == 0 or number == len(names):
                    self.watch("images", number, len(names))

        def compute() -> Features:
            with ImageArchive(archive) as images:
                return encode_images(self.clip, opened(images))

        if self._keep is None:
            return compute()
        computed_by = f"{self.tower} {self.clip.device.type} {version('torch')}"
        return self._keep(computed_by, archive, names, boxes, compute)


@dataclass(frozen=True)
class Prepared:
    """A benchmark that has been read, under its name."""

    name: str
    kind: str
    task: Task

    def measure(self, encoder: Encoder) -> Measured:
        try:
            measured = self.task.measure(encoder)
        except BenchmarkError as error:
            raise BenchmarkError(f"benchmark {self.name!r}: {error}") from error
        except ParaclipError as error:
            error.add_note(f"while measuring benchmark {self.name!r}")
            raise
        row = find_benchmark(self.kind)
        if unlisted := [name for name in measured.samples if row.metric(name) is None]:
            names = ", ".join(metric.name for metric in row.metrics)
            raise BenchmarkError(
                f"benchmark {self.name!r} measured {unlisted[0]!r}; expected the metrics of its Benchmark, {names}"
            )
        return measured


def parse_benchmark(text: str) -> BenchmarkOptions:
    """``NAME=PATH``, NAME being a kind, a known alias (``stsb``, ``karpathy``, …), or ``LABEL:KIND``."""
    name, equals, path = text.partition("=")
    label, _, kind = name.partition(":")
    if not equals or not path or not label:
        raise ConfigError(f"--benchmark {text!r}: expected NAME=PATH, for example stsb=data/sts/STSB-test.tsv")
    kinds = {alias: kind for kind in BENCHMARKS for alias in (kind, *find_benchmark(kind).aliases)}
    chosen = kind if ":" in kind else kinds.get((kind or label).lower())
    if chosen is None:
        raise ConfigError(
            f"--benchmark {text!r}: unknown name {kind or label!r}; known are {', '.join(sorted(kinds))}, and "
            "LABEL:package.module:NAME for a benchmark of your own"
        )
    find_benchmark(chosen)
    return BenchmarkOptions(name=label, kind=chosen, path=path)


def source_files(kind: str, path: Path, split: str | None = None, images: Path | None = None) -> list[Path]:
    """Every file that the benchmark reads; `split` and `images` as in :class:`Source`."""
    _need(path)
    files = find_benchmark(kind).files
    inside = beside(path) if files is None else files(path, split)
    if images is None:
        return inside
    _need(images)
    places = [
        place for archive in archives(images) for place in ([archive] if archive.is_file() else archive.rglob("*"))
    ]
    return sorted({*inside, *(place for place in places if place.is_file())})


def prepare(
    benchmark: BenchmarkOptions,
    path: Path | None,
    stored: Stored | None = None,
    split: str | None = None,
    images: Path | None = None,
) -> Prepared:
    """Read a benchmark; all but the first argument are those of :class:`Source`."""
    try:
        for place in filter(None, (path, images)):
            _need(place)
        task = find_benchmark(benchmark.kind).load(Source(path, stored, split, benchmark.options, images))
    except (BenchmarkError, InputError) as error:
        raise BenchmarkError(f"benchmark {benchmark.name!r}: {error}") from error
    return Prepared(benchmark.name, benchmark.kind, task)


def _need(path: Path) -> None:
    if not path.exists():
        raise BenchmarkError(f"{path.absolute()} does not exist; correct the path or mark it `optional: true`")
    if not (path.is_file() or path.is_dir()):
        raise BenchmarkError(f"{path} is a pipe or a device and cannot be read twice; write it to a file first")


def left_out(benchmark: BenchmarkOptions, path: Path | None, images: Path | None) -> str | None:
    """Why an optional benchmark is not measured; None where it is."""
    if benchmark.optional and path is not None and not path.exists():
        return "its path is absent"
    if benchmark.optional and images is not None and not images.exists():
        return "its images are absent"
    return None


def check_names(benchmarks: Sequence[BenchmarkOptions]) -> None:
    """Names are file names and keys, so they must be plain and distinct."""
    names = [benchmark.name for benchmark in benchmarks]
    for name in names:
        if not name or name.startswith(".") or UNSAFE & set(name) or name != name.strip():
            raise ConfigError(f"benchmark name {name!r}: expected letters, digits, blanks, - and _, as in stsb")
        if len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
            raise ConfigError(f"benchmark name {name[:40]!r}… is too long; expected at most {LONGEST_NAME} bytes")
        if names.count(name) > 1:
            raise ConfigError(f"two benchmarks have the name {name!r}; give each its own")


def to_arrays(measured: Measured) -> dict[str, NDArray[Any]]:
    """Values and ranked lists as named arrays (for an .npz file); notes are not part of it."""
    arrays: dict[str, NDArray[Any]] = {f"ranked:{name}": rows for name, rows in measured.ranked.items()}
    for name, sample in measured.samples.items():
        parts = {"values": sample.values, "clusters": sample.clusters, "gold": sample.gold}
        arrays |= {f"{part}:{name}": array for part, array in parts.items() if array is not None}
    return arrays


def from_arrays(arrays: Mapping[str, NDArray[Any]], notes: Mapping[str, Any]) -> Measured:
    """The reverse of :func:`to_arrays`; the metrics keep their order."""
    by_part: dict[str, dict[str, NDArray[Any]]] = {part: {} for part in ("values", "clusters", "gold", "ranked")}
    for key, array in arrays.items():
        part, _, name = key.partition(":")
        by_part[part][name] = array
    values, clusters, gold, ranked = by_part.values()
    return Measured({name: Sample(values[name], clusters[name], gold.get(name)) for name in values}, notes, ranked)


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
    fingerprint or a reference. Without `provenance`, revision, versions and time are left out, or null: times differ
    from run to run, and the bytes of an artifact must not.
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
    """What mteb calls a benchmark of this name; its own name where mteb has none."""
    plain = "".join(letter for letter in benchmark.casefold() if letter.isalnum())
    return "SICK-R" if kind == "sick" else MTEB_NAMES.get(plain, benchmark)


def _published(metric: Metric | None, name: str) -> str:
    if metric is None or not metric.published:
        return name
    _, at, part = name.partition("@")
    return metric.published + at + part if metric.by_part else metric.published
