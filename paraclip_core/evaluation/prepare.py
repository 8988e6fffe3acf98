"""Prepares the benchmarks of a configuration: checks their names, finds their files and loads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paraclip_core.errors import BenchmarkError, ConfigError, InputError, ParaclipError
from paraclip_core.evaluation.base import Encoder, Measured
from paraclip_core.evaluation.benchmarks import BENCHMARKS, Source, Stored, Task, find_benchmark
from paraclip_core.evaluation.options import BenchmarkOptions
from paraclip_core.evaluation.published import archives, files_in
from paraclip_core.options import LONGEST_NAME

UNSAFE = set('/\\:*?"<>|\0')


@dataclass(frozen=True)
class Prepared:
    """A loaded benchmark with its name."""

    name: str
    kind: str
    task: Task

    def measure(self, encoder: Encoder) -> Measured:
        try:
            return self.task.measure(encoder)
        except BenchmarkError as error:
            raise BenchmarkError(f"benchmark {self.name!r}: {error}") from error
        except ParaclipError as error:
            error.add_note(f"while measuring benchmark {self.name!r}")
            raise


def parse_benchmark(text: str) -> BenchmarkOptions:
    """Parse ``NAME=PATH``, where NAME is a kind, a known alias (``stsb``, ``karpathy``, …), or ``LABEL:KIND``."""
    name, equals, path = text.partition("=")
    label, _, kind = name.partition(":")
    if not equals or not path or not label:
        raise ConfigError(f"--benchmark {text!r}: expected NAME=PATH, for example stsb=data/sts/STSB-test.tsv")
    kinds = {alias: kind for kind in BENCHMARKS for alias in (kind, *find_benchmark(kind).aliases)}
    if (chosen := kinds.get((kind or label).lower())) is None:
        raise ConfigError(f"--benchmark {text!r}: unknown name {kind or label!r}; known are {', '.join(sorted(kinds))}")
    return BenchmarkOptions(name=label, kind=chosen, path=path)


def source_files(kind: str, path: Path, split: str | None = None, images: Path | None = None) -> list[Path]:
    """Every file that the benchmark reads; `split` and `images` as in :class:`Source`."""
    _need(path)
    files = find_benchmark(kind).files
    inside = files_in(path) if files is None else files(path, split)
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
    """Load a benchmark; all arguments but the first are those of :class:`Source`."""
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
    """Why an optional benchmark is not measured; None if it is."""
    if benchmark.optional and path is not None and not path.exists():
        return "its path is absent"
    if benchmark.optional and images is not None and not images.exists():
        return "its images are absent"
    return None


def check_names(benchmarks: Sequence[BenchmarkOptions]) -> None:
    """Check that names are plain and distinct, as they become file names and keys."""
    names = [benchmark.name for benchmark in benchmarks]
    for name in names:
        if not name or name.startswith(".") or UNSAFE & set(name) or name != name.strip():
            raise ConfigError(f"benchmark name {name!r}: expected letters, digits, spaces, - and _, as in stsb")
        if len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
            raise ConfigError(f"benchmark name {name[:40]!r}… is too long; expected at most {LONGEST_NAME} bytes")
        if names.count(name) > 1:
            raise ConfigError(f"two benchmarks have the name {name!r}; give each its own")
