"""From a benchmark's options to something that can be measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pyarrow as pa

from paraclip_core.config import BenchmarkKind, BenchmarkOptions
from paraclip_core.errors import BenchmarkError, ConfigError
from paraclip_core.evaluation import published
from paraclip_core.evaluation.benchmarks import paraphrased_retrieval, retrieval, sick, sts, sugarcrepe
from paraclip_core.evaluation.parquet_captions import load_pictures, picture_files
from paraclip_core.evaluation.pool import Encoder, ImagePool
from paraclip_core.evaluation.published import Captions
from paraclip_core.evaluation.rows import read_json_file
from paraclip_core.evaluation.samples import Measured

__all__ = ["ALIASES", "Stored", "Task", "parse_benchmark", "prepare", "source_files"]

ALIASES: dict[str, BenchmarkKind] = {
    **{kind: kind for kind in get_args(BenchmarkKind)},
    **dict.fromkeys(("stsb", "sts-b", "sts12", "sts13", "sts14", "sts15", "sts16"), "sts"),
    **dict.fromkeys(("sick-r",), "sick"),
    **dict.fromkeys(("flickr8k", "flickr30k", "coco", "karpathy"), "retrieval"),
    **dict.fromkeys(("rewordings", "pairs", "sugarcrepe++"), "paraphrased_retrieval"),
}
"""Kind of each name that the command line takes."""


@dataclass(frozen=True)
class Stored:
    """Captions of the evaluation split and image features that are at hand already."""

    captions: Captions
    pool: Callable[[Sequence[str]], ImagePool]
    """The pool of those of the given images that have features."""


@dataclass(frozen=True)
class Task:
    """A benchmark that has been read."""

    name: str
    kind: BenchmarkKind
    measure: Callable[[Encoder], Measured]
    per_query: Callable[[Measured, Measured], pa.Table] | None = None
    """Table of all queries from the base's and the tuned model's outcome, where the family has one."""


def parse_benchmark(text: str) -> BenchmarkOptions:
    """``NAME=PATH``, NAME being a kind, a known alias (``stsb``, ``karpathy``, …), or ``LABEL:KIND``.

    Raises:
        ConfigError: the text has another form or the name is unknown.
    """
    name, equals, path = text.partition("=")
    label, _, kind = name.partition(":")
    found = ALIASES.get((kind or label).lower())
    if not equals or not path or not label:
        raise ConfigError(f"--benchmark {text!r}: expected NAME=PATH, for example stsb=data/sts/STSB-test.tsv")
    if found is None:
        raise ConfigError(
            f"--benchmark {text!r}: unknown name {kind or label!r}; known are {', '.join(sorted(ALIASES))}"
        )
    return BenchmarkOptions(name=label, kind=found, path=path)


def source_files(kind: BenchmarkKind, path: Path, split: str | None = None) -> list[Path]:
    """Every file that the benchmark reads; `split` as :func:`prepare` takes it.

    Raises:
        BenchmarkError: the path is absent or holds nothing of the kind.
    """
    _need(path)
    if kind == "sick":
        return [sick.test_file(path)]
    if kind == "sts":
        return sorted(path.glob("STS.*.txt")) if path.is_dir() else [path]
    if kind == "sugarcrepe":
        return published.beside(path)
    return picture_files(path, split, pairs=kind == "paraphrased_retrieval") or published.beside(path)


def prepare(
    benchmark: BenchmarkOptions, path: Path | None, stored: Stored | None = None, split: str | None = None
) -> Task:
    """Read a benchmark.

    Args:
        benchmark: its name and kind.
        path: its file or folder; None: the stored split's captions.
        stored: the evaluation split, where a run has one.
        split: split of a published file with several; None: its test split, or val where it has no test split.

    Raises:
        BenchmarkError: the file is not in the published format, or there is no path and no stored split.
    """
    try:
        return _prepare(benchmark, path, stored, split)
    except BenchmarkError as error:
        raise BenchmarkError(f"benchmark {benchmark.name!r}: {error}") from error


def _prepare(benchmark: BenchmarkOptions, path: Path | None, stored: Stored | None, split: str | None) -> Task:
    name, kind = benchmark.name, benchmark.kind
    if path is not None:
        _need(path)
    if kind in ("sts", "sick", "sugarcrepe"):
        if path is None:
            raise BenchmarkError(f"kind {kind} needs a path to its published files")
        return _text_task(name, kind, path)
    if kind == "retrieval":
        captions, pool = _captions(path, stored, split)
        pool.check_queries(captions.image_ids)
        return Task(name, kind, lambda encoder: retrieval.measure(captions, pool, encoder))
    pairs, pool = _pairs(path, stored, split)
    pairs = paraphrased_retrieval.within(pairs, pool)
    pool.check_queries(pairs.image_ids)
    return Task(
        name,
        kind,
        lambda encoder: paraphrased_retrieval.measure(pairs, pool, encoder),
        lambda base, tuned: paraphrased_retrieval.per_query(pairs, pool, base, tuned),
    )


def _need(path: Path) -> None:
    if not path.exists():
        raise BenchmarkError(f"{path.absolute()} does not exist; correct the path or mark it `optional: true`")
    if not (path.is_file() or path.is_dir()):
        raise BenchmarkError(f"{path} is a pipe or a device and cannot be read twice; write it to a file first")


def _text_task(name: str, kind: BenchmarkKind, path: Path) -> Task:
    if kind == "sugarcrepe":
        rows = sugarcrepe.load(path)
        sugarcrepe.check_categories(rows)
        return Task(name, kind, lambda encoder: sugarcrepe.measure(rows, encoder))
    pairs = sts.load(path) if kind == "sts" else sick.load(path)
    return Task(name, kind, lambda encoder: sts.measure(pairs, encoder.texts))


def _captions(path: Path | None, stored: Stored | None, split: str | None) -> tuple[Captions, ImagePool]:
    if path is not None:
        if files := picture_files(path, split):
            return load_pictures(path, files, split)
        file = published.captions_file(path)
        captions = published.load_captions(file, split)
        return captions, published.pool_of(file, captions.image_ids)
    if stored is None:
        raise BenchmarkError("it needs a path: there is no ingested split outside a run")
    if not stored.captions.captions:
        raise BenchmarkError(
            f"no ingested caption of split {stored.captions.split!r} has an image; set evaluate.split, "
            "name the images in data.sources[].images, or see in ingest's log and rejects why"
        )
    return stored.captions, stored.pool(stored.captions.image_ids)


def _pairs(
    path: Path | None, stored: Stored | None, split: str | None
) -> tuple[paraphrased_retrieval.Pairs, ImagePool]:
    if path is None or _is_captions_json(path) or picture_files(path, split, pairs=True):
        captions, pool = _captions(path, stored, split)
        return paraphrased_retrieval.pairs_of_captions(captions), pool
    pairs = paraphrased_retrieval.load(path)
    if stored is not None:
        beside = published.images_beside(path)
        try:
            pool = stored.pool([*stored.captions.image_ids, *pairs.image_ids])
        except BenchmarkError:
            # None of them was ingested, as where a run's captions have no held-out split.
            if beside is None:
                raise
        else:
            if beside is None or (pool.find(pairs.image_ids) >= 0).any():
                return pairs, pool
    return pairs, published.pool_of(path, pairs.image_ids)


def _is_captions_json(path: Path) -> bool:
    if path.is_dir():
        named = [*path.glob("rewordings.*"), *path.glob("pairs.*")]
        return any(path.glob("dataset_*.json")) or (
            not named and any(_is_captions_json(file) for file in path.glob("captions*.json"))
        )
    if path.suffix != ".json":
        return False
    value = read_json_file(path)
    return isinstance(value, dict) and isinstance(value.get("images"), list)
