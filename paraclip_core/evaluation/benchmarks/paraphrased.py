"""Paraphrased retrieval (Cheng et al., arXiv 2405.03190): do a query and its paraphrase find the same images?

Pairs come from a file with the columns image_id, caption and paraphrased_query (SugarCrepe++'s filename, caption and
caption2 do as well), or are all pairs of an image's captions: ten for five captions.

Reviews of Cheng et al. give AO@k without the division by the depth, by which equal lists score 5.5 of 10. The
established measure has the division, and equal lists score 1 (Wu & Crestani, 2003; Webber et al., 2010); ``ao@10`` is
the latter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paraclip_core.errors import BenchmarkError, InputError
from paraclip_core.evaluation import published
from paraclip_core.evaluation.base import Captions, Encoder, ImagePool, Measured, plain_queries
from paraclip_core.evaluation.benchmarks import Benchmark, Source, Task
from paraclip_core.evaluation.metrics import average_overlap, jaccard
from paraclip_core.evaluation.pairs import AGREEMENT, DEPTH, RECALLS, SIDES, QueryPair, differ, measure_pairs
from paraclip_core.evaluation.published import (
    captioned_files,
    captioned_images,
    every_image,
    field,
    find_images,
    images_beside,
    pool_of,
    records,
)
from paraclip_core.options import Options
from paraclip_core.tables import PER_QUERY

PARAPHRASED = ("paraphrased_query", "caption2", "paraphrase")
ENDINGS = (".jsonl", ".json", ".parquet", ".csv", ".tsv")


class PairOptions(Options):
    """What is searched."""

    pool: Literal["pairs", "all"] = "pairs"
    """Images to search: those of the pairs, or of the run; or all images next to the pairs."""


@dataclass(frozen=True)
class Pairs:
    """Caption and paraphrased query of each query pair, and the image that both describe."""

    image_ids: Sequence[str]
    captions: Sequence[str]
    paraphrased_queries: Sequence[str]
    split: str
    equal: int = 0
    """Pairs left out because both texts are identical."""
    without_image: int = 0
    """Pairs left out because their image is not in the pool."""


def load(source: Source) -> Task:
    """Load pairs whose image is in the pool: from a file of pairs, or all pairs of an image's captions."""
    pairs, pool = _pairs_and_pool(source, PairOptions.model_validate(dict(source.options)).pool)
    pairs = within(pairs, pool)
    pool.check_queries(pairs.image_ids)
    return Task(
        lambda encoder: measure(pairs, pool, encoder),
        lambda base, tuned: per_query(pairs, pool, base, tuned),
        pairs.image_ids,
        plain_queries(pairs.captions, pool, pairs.image_ids),
    )


def _pairs_and_pool(source: Source, searched: str) -> tuple[Pairs, ImagePool]:
    path, stored = source.need_path() if searched == "all" else source.path, source.stored
    if path is None or (searched == "pairs" and not pairs_files(path)):
        captions, pool = captioned_images(source)
        return pairs_of_captions(captions), pool
    pairs, beside = read_pairs(path), images_beside(path)
    if searched == "all":
        if (images := source.images or beside) is None:
            raise BenchmarkError(
                f"`pool: all` searches every image next to {path}, but there is none; name them in `images`"
            )
        return pairs, every_image(images, find_images(images, list(dict.fromkeys(pairs.image_ids))))
    if stored is not None and source.images is None:
        try:
            pool = stored.pool([*stored.captions.image_ids, *pairs.image_ids])
        except BenchmarkError:
            # None of them was ingested, for example if a run's captions have no held-out split.
            if beside is None:
                raise
        else:
            # A run may lack some of them, which could not be read, and other images of its own may have a few names.
            if beside is None or (pool.find(pairs.image_ids) >= 0).mean() >= 0.5:
                return pairs, pool
    return pairs, pool_of(path, pairs.image_ids, source.images)


def read_pairs(path: Path) -> Pairs:
    rows = [
        (
            field(file, number, row, "image_id", "filename", "image"),
            field(file, number, row, "caption"),
            field(file, number, row, *PARAPHRASED),
        )
        for file in pairs_files(path)
        for number, row in records(file)
    ]
    if not rows:
        raise BenchmarkError(f"{path} has no pairs; expected rows with image_id, caption and paraphrased_query")
    return _pairs(rows, path.name)


def pairs_files(path: Path) -> list[Path]:
    """The files of pairs: in a folder ``paraphrased_queries.*`` or ``pairs.*``, or else all files with pairs; never
    files of captions."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in ENDINGS)
        return [file for file in files if file.stem in ("paraphrased_queries", "pairs")] or [*filter(_has_pairs, files)]
    return [path] if _has_pairs(path) else []


def _has_pairs(file: Path) -> bool:
    try:
        first = next(records(file), None)
    except (BenchmarkError, InputError):  # captions in another format, or damaged, which their reader reports
        return False
    return first is not None and any(name in first[1] for name in PARAPHRASED)


def pairs_of_captions(captions: Captions) -> Pairs:
    """All pairs of the captions of each image, in the order of the images' first captions."""
    by_image: dict[str, list[str]] = {}
    for image_id, caption in zip(captions.image_ids, captions.captions, strict=True):
        by_image.setdefault(image_id, []).append(caption)
    rows = [(image_id, a, b) for image_id, texts in by_image.items() for a, b in combinations(texts, 2)]
    if not rows:
        raise BenchmarkError(
            f"no image of split {captions.split!r} has two captions; give the benchmark the path of a file with the "
            "columns image, caption and paraphrased_query"
        )
    return _pairs(rows, captions.split)


def within(pairs: Pairs, pool: ImagePool) -> Pairs:
    if not pairs.image_ids:
        raise BenchmarkError(
            f"all {pairs.equal} pairs ({pairs.split}) repeat one text, apart from case and spaces; expected a caption "
            "and a paraphrase of it"
        )
    places = np.flatnonzero(pool.find(pairs.image_ids) >= 0).tolist()
    if not places:
        first = next(iter(pairs.image_ids), None)
        raise BenchmarkError(
            f"none of {len(pairs.image_ids)} pairs ({pairs.split}) has its image in the pool; first missing: {first!r}"
        )
    if len(pool.ids) < DEPTH:
        raise BenchmarkError(
            f"its pool has {len(pool.ids)} images; expected at least {DEPTH}: use a split with more, or leave it out"
        )
    ids, captions, paraphrased_queries = (
        [column[i] for i in places] for column in (pairs.image_ids, pairs.captions, pairs.paraphrased_queries)
    )
    return Pairs(ids, captions, paraphrased_queries, pairs.split, pairs.equal, len(pairs.image_ids) - len(places))


def measure(pairs: Pairs, pool: ImagePool, encoder: Encoder) -> Measured:
    """The figures of :func:`measure_pairs`; all images of the pairs must be in the pool, see :func:`within`."""
    texts = zip(pairs.captions, pairs.paraphrased_queries, pairs.image_ids, strict=True)
    rows = [QueryPair(query, other, image=image) for query, other, image in texts]
    measured = measure_pairs(rows, pool, encoder)
    notes = {
        "protocol": "both rankings over all images of the pool; mean over pairs",
        "split": pairs.split,
        **measured.notes,
        "images_with_pairs": len(set(pairs.image_ids)),
        "pairs_with_equal_texts": pairs.equal,
        "pairs_without_image": pairs.without_image,
    }
    return replace(measured, notes=notes)


def per_query(pairs: Pairs, pool: ImagePool, base: Measured, tuned: Measured) -> pa.Table:
    """All pairs with both models' scores and ranked lists (:data:`paraclip_core.tables.PER_QUERY`)."""
    columns: list[pa.Array] = [
        pa.array(list(side)) for side in (pairs.image_ids, pairs.captions, pairs.paraphrased_queries)
    ]
    for overlap in (average_overlap, jaccard):
        columns += [
            pa.array(overlap(measured.ranked["caption"], measured.ranked["paraphrased_query"], DEPTH))
            for measured in (base, tuned)
        ]
    ids = pa.array(list(pool.ids))
    for measured in (base, tuned):
        columns += [_lists(ids, measured.ranked[side]) for side in SIDES]
    return pa.Table.from_arrays(columns, schema=PER_QUERY)


def _lists(ids: pa.Array, ranked: NDArray[np.int64]) -> pa.Array:
    offsets = pa.array(np.arange(0, ranked.size + 1, ranked.shape[1], dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, ids.take(pa.array(ranked.reshape(-1))))


def _pairs(rows: list[tuple[str, str, str]], split: str) -> Pairs:
    # The tokenizer ignores case and extra spaces, so such a pair is one text twice and overlaps fully by definition.
    distinct = [row for row in rows if differ(row[1], row[2])]
    ids, captions, paraphrased_queries = ([row[column] for row in distinct] for column in range(3))
    return Pairs(ids, captions, paraphrased_queries, split, len(rows) - len(distinct))


PARAPHRASED_RETRIEVAL = Benchmark(
    title="Paraphrased retrieval",
    metrics=(*AGREEMENT, *RECALLS),
    load=load,
    files=lambda path, split: published.files_in(path) if pairs_files(path) else captioned_files(path, split),
    aliases=("paraphrased_queries", "pairs", "coco-p"),
    searches_images=True,
    resampled="images",
    searches_stored=True,
    options=PairOptions,
    needs_images=True,
)
