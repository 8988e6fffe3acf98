"""Measure two models on a list of benchmarks and compare them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paraclip_core.config import LONGEST_NAME, BenchmarkOptions, EvaluateOptions
from paraclip_core.errors import BenchmarkError, ConfigError, ParaclipError
from paraclip_core.evaluation.benchmarks import BENCHMARKS, Source, Stored, Task, find_benchmark
from paraclip_core.evaluation.compare import Comparison, Outcome, compare
from paraclip_core.evaluation.pool import Encoder
from paraclip_core.evaluation.published import beside
from paraclip_core.evaluation.results import Measured
from paraclip_core.paths import user_path
from paraclip_core.progress import Progress, silent

if TYPE_CHECKING:
    from paraclip_core.clip.model import ClipModel

__all__ = [
    "Candidate", "Evaluation", "Prepared", "Remember", "always_measure", "check_names", "evaluate_models",
    "measure_all", "parse_benchmark", "prepare", "source_files",
]  # fmt: skip

Remember = Callable[[str, str, Callable[[], Measured]], Measured]
"""Called with model, benchmark and the computation: gives an earlier outcome, or computes and keeps it."""

UNSAFE = set('/\\:*?"<>|\0')
TEXTS = 4096
"""Texts that are encoded at once."""


@dataclass(frozen=True)
class Evaluation:
    """All that was measured, and what follows."""

    outcomes: tuple[Outcome, ...]
    per_query: Mapping[str, pa.Table]
    """Tables of all queries, by benchmark."""
    comparison: Comparison


@dataclass(frozen=True)
class Prepared:
    """A benchmark that has been read, under its name."""

    name: str
    kind: str
    task: Task

    def measure(self, encoder: Encoder) -> Measured:
        """Its outcome for a model.

        Raises:
            BenchmarkError: it cannot be measured, or measures what its row does not list.
        """
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


class Candidate:
    """One of the two models of a comparison, loaded when it is first needed."""

    # What loads models imports torch, which takes seconds, and a run that is planned measures nothing.

    def __init__(self, reference: str, device: str = "auto") -> None:
        """`reference` as :func:`paraclip_core.clip.load.load_clip` takes it."""
        self.reference, self._device = reference, device

    @cached_property
    def clip(self) -> ClipModel:
        """The loaded model."""
        from paraclip_core.clip.load import load_clip
        from paraclip_core.clip.model import pick_device

        return load_clip(self.reference, pick_device(self._device))

    @property
    def tower(self) -> str:
        """Hash of image tower and preprocessing, and how the tower computes."""
        return self._tower

    @cached_property
    def _tower(self) -> str:
        from paraclip_core.clip.model import image_architecture, image_tower_hash, preprocess_hash

        architecture = json.dumps(image_architecture(self.clip), sort_keys=True)
        return f"{image_tower_hash(self.clip)}-{preprocess_hash(self.clip)}-{architecture}"

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts in blocks: float32 [n, d], rows of length 1."""
        from paraclip_core.clip.encode import encode_texts

        blocks = [encode_texts(self.clip, texts[start : start + TEXTS]) for start in range(0, len(texts), TEXTS)]
        return np.concatenate([np.zeros((0, self.clip.embed_dim), np.float32), *blocks])

    def images(self, archive: Path, names: Sequence[str]) -> NDArray[np.float16]:
        """Encode images of a tar or folder: float16 [n, d]."""
        from paraclip_core.clip.encode import encode_images
        from paraclip_core.clip.images import ImageArchive

        with ImageArchive(archive) as images:
            return encode_images(self.clip, (images.open(name) for name in names))


def parse_benchmark(text: str) -> BenchmarkOptions:
    """``NAME=PATH``, NAME being a kind, a known alias (``stsb``, ``karpathy``, …), or ``LABEL:KIND``.

    Raises:
        ConfigError: the text has another form or the name is unknown.
    """
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


def source_files(kind: str, path: Path, split: str | None = None) -> list[Path]:
    """Every file that the benchmark reads; `split` as in :class:`Source`.

    Raises:
        BenchmarkError: the path is absent or holds nothing of the kind.
    """
    _need(path)
    files = find_benchmark(kind).files
    return beside(path) if files is None else files(path, split)


def prepare(
    benchmark: BenchmarkOptions, path: Path | None, stored: Stored | None = None, split: str | None = None
) -> Prepared:
    """Read a benchmark; the last three arguments are those of :class:`Source`.

    Raises:
        BenchmarkError: the file is not in the published format, or there is no path and no stored split.
    """
    try:
        if path is not None:
            _need(path)
        task = find_benchmark(benchmark.kind).load(Source(path, stored, split, benchmark.options))
    except BenchmarkError as error:
        raise BenchmarkError(f"benchmark {benchmark.name!r}: {error}") from error
    return Prepared(benchmark.name, benchmark.kind, task)


def _need(path: Path) -> None:
    if not path.exists():
        raise BenchmarkError(f"{path.absolute()} does not exist; correct the path or mark it `optional: true`")
    if not (path.is_file() or path.is_dir()):
        raise BenchmarkError(f"{path} is a pipe or a device and cannot be read twice; write it to a file first")


def always_measure(model: str, benchmark: str, compute: Callable[[], Measured]) -> Measured:
    """The :data:`Remember` that remembers nothing."""
    return compute()


def evaluate_models(
    base: str,
    tuned: str,
    benchmarks: Sequence[BenchmarkOptions],
    options: EvaluateOptions | None = None,
    *,
    root: Path | str = ".",
    split: str | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> Evaluation:
    """Compare two models on benchmarks in their published formats, outside any run.

    Images are encoded on the fly by each model's own image tower, once where both have the same.

    Args:
        base: reference of the base model, as :func:`paraclip_core.clip.load.load_clip` takes it.
        tuned: reference of the tuned model.
        benchmarks: each with a path, relative to `root`; see :func:`parse_benchmark`.
        options: resamples, confidence, seed and gate; the benchmarks in it are not looked at.
        root: folder that paths are relative to.
        split: split of published files with several; None: test, or val where there is no test split.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        progress: told after each (benchmark, model).

    Raises:
        ConfigError: two benchmarks have one name, or a name cannot be a file name.
        BenchmarkError: a benchmark is absent or not in its published format.
        ModelError: a model cannot be loaded.
    """
    options = options or EvaluateOptions()
    check_names(benchmarks)
    tasks: list[Prepared] = []
    skipped: dict[str, str] = {}
    for benchmark in benchmarks:
        path = None if benchmark.path is None else user_path(root) / user_path(benchmark.path)
        if benchmark.optional and path is not None and not path.exists():
            skipped[benchmark.name] = "its path is absent"
            continue
        tasks.append(prepare(benchmark, path, None, split))
    models = {"base": Candidate(base, device), "tuned": Candidate(tuned, device)}
    return measure_all(models, tasks, options, skipped, always_measure, progress)


def measure_all(
    models: Mapping[str, Encoder],
    tasks: Sequence[Prepared],
    options: EvaluateOptions,
    skipped: Mapping[str, str],
    remember: Remember,
    progress: Progress = silent,
) -> Evaluation:
    """Measure `base` and `tuned` of `models` on every task, and compare.

    Raises:
        BenchmarkError: a task cannot be measured; the message names it.
    """
    outcomes, tables = [], {}
    total = len(models) * len(tasks)
    for position, task in enumerate(tasks):
        measured = {}
        for step, (name, encoder) in enumerate(models.items()):
            progress(position * len(models) + step, total, benchmark=task.name, model=name)
            measured[name] = remember(name, task.name, lambda task=task, encoder=encoder: task.measure(encoder))
        outcomes.append(Outcome(task.name, task.kind, measured["base"], measured["tuned"]))
        if task.task.per_query is not None:
            tables[task.name] = task.task.per_query(measured["base"], measured["tuned"])
    progress(total, total)
    return Evaluation(tuple(outcomes), tables, compare(outcomes, options, skipped))


def check_names(benchmarks: Sequence[BenchmarkOptions]) -> None:
    """Names are file names and keys, so they must be plain and distinct.

    Raises:
        ConfigError: one is not.
    """
    names = [benchmark.name for benchmark in benchmarks]
    for name in names:
        if not name or name.startswith(".") or UNSAFE & set(name) or name != name.strip():
            raise ConfigError(f"benchmark name {name!r}: expected letters, digits, blanks, - and _, as in stsb")
        if len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
            raise ConfigError(f"benchmark name {name[:40]!r}… is too long; expected at most {LONGEST_NAME} bytes")
        if names.count(name) > 1:
            raise ConfigError(f"two benchmarks have the name {name!r}; give each its own")
