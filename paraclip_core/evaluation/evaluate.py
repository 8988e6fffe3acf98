"""Measure two models on a list of benchmarks and compare them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from paraclip_core.config import LONGEST_NAME, BenchmarkOptions, EvaluateOptions
from paraclip_core.errors import BenchmarkError, ConfigError, ParaclipError
from paraclip_core.evaluation.comparison import Comparison, Outcome, compare
from paraclip_core.evaluation.pool import Encoder
from paraclip_core.evaluation.samples import Measured
from paraclip_core.evaluation.tasks import Task, prepare
from paraclip_core.paths import user_path
from paraclip_core.progress import Progress, silent

__all__ = ["Evaluation", "Remember", "always_measure", "check_names", "evaluate_models", "measure_all"]

Remember = Callable[[str, str, Callable[[], Measured]], Measured]
"""Called with model, benchmark and the computation: gives an earlier outcome, or computes and keeps it."""

UNSAFE = set('/\\:*?"<>|\0')


@dataclass(frozen=True)
class Evaluation:
    """All that was measured, and what follows."""

    outcomes: tuple[Outcome, ...]
    per_query: Mapping[str, pa.Table]
    """Tables of all queries, by benchmark."""
    comparison: Comparison


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
        benchmarks: each with a path, relative to `root`; see :func:`paraclip_core.evaluation.tasks.parse_benchmark`.
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
    # Here, because torch takes seconds to import and a run that is planned only needs the names below.
    from paraclip_core.evaluation.candidate import Candidate

    options = options or EvaluateOptions()
    check_names(benchmarks)
    tasks: list[Task] = []
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
    tasks: Sequence[Task],
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
            measured[name] = remember(name, task.name, lambda task=task, encoder=encoder: _measure(task, encoder))
        outcomes.append(Outcome(task.name, task.kind, measured["base"], measured["tuned"]))
        if task.per_query is not None:
            tables[task.name] = task.per_query(measured["base"], measured["tuned"])
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


def _measure(task: Task, encoder: Encoder) -> Measured:
    try:
        return task.measure(encoder)
    except BenchmarkError as error:
        raise BenchmarkError(f"benchmark {task.name!r}: {error}") from error
    except ParaclipError as error:
        error.add_note(f"while measuring benchmark {task.name!r}")
        raise
