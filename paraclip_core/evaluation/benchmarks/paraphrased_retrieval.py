"""Paraphrased retrieval (Cheng et al., arXiv 2405.03190): do two wordings of one meaning find the same images?

Pairs come from a file with the columns image_id, caption and rewording (SugarCrepe++'s filename, caption and caption2
do as well), or are all pairs of an image's captions: ten for five captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.metrics import average_overlap, jaccard, recall_at_k
from paraclip_core.evaluation.pool import Encoder, ImagePool, unique_features
from paraclip_core.evaluation.published import Captions
from paraclip_core.evaluation.ranking import top_k
from paraclip_core.evaluation.rows import field, records
from paraclip_core.evaluation.samples import Measured, Sample
from paraclip_core.metric_names import RECALL_DEPTHS
from paraclip_core.tables import PER_QUERY

__all__ = ["DEPTH", "Pairs", "load", "measure", "pairs_files", "pairs_of_captions", "per_query", "within"]

DEPTH = 10


@dataclass(frozen=True)
class Pairs:
    """Caption and rewording of each query pair, and the image that both tell of."""

    image_ids: Sequence[str]
    captions: Sequence[str]
    rewordings: Sequence[str]
    split: str
    equal: int = 0
    """Pairs left out because both texts are the same words."""
    without_image: int = 0
    """Pairs left out because their image is not in the pool."""


def pairs_files(path: Path) -> list[Path]:
    """The file itself; of a folder ``rewordings.*`` or ``pairs.*``, else its only pairs file, else all its JSON files.

    Raises:
        BenchmarkError: the folder has none, or several of different formats.
    """
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix in (".jsonl", ".json", ".parquet", ".csv", ".tsv"))
    found = [p for p in found if p.stem in ("rewordings", "pairs")] or found
    if len(found) != 1 and {p.suffix for p in found} != {".json"}:
        names = ", ".join(p.name for p in found) or "none"
        raise BenchmarkError(f"{path}: expected one file with pairs (rewordings.jsonl), found {names}; name the file")
    return found


def load(path: Path) -> Pairs:
    """Read pairs from JSONL, JSON, CSV, TSV or Parquet, or a folder (see :func:`pairs_files`).

    Raises:
        BenchmarkError: a row lacks a field, or there is no row; names file, row and expectation.
    """
    rows = [
        (
            field(file, number, row, "image_id", "filename", "image"),
            field(file, number, row, "caption"),
            field(file, number, row, "rewording", "caption2", "paraphrase"),
        )
        for file in pairs_files(path)
        for number, row in records(file)
    ]
    if not rows:
        raise BenchmarkError(f"{path} has no rows; expected image_id, caption and rewording")
    return _pairs(rows, path.name)


def pairs_of_captions(captions: Captions) -> Pairs:
    """All pairs of the captions of each image, in the order of the images' first captions."""
    by_image: dict[str, list[str]] = {}
    for image_id, caption in zip(captions.image_ids, captions.captions, strict=True):
        by_image.setdefault(image_id, []).append(caption)
    rows = [(image_id, a, b) for image_id, texts in by_image.items() for a, b in combinations(texts, 2)]
    if not rows:
        raise BenchmarkError(
            f"no image of split {captions.split!r} has two captions; give the benchmark the path of a file with the "
            "columns image, caption and rewording"
        )
    return _pairs(rows, captions.split)


def within(pairs: Pairs, pool: ImagePool) -> Pairs:
    """The pairs whose image is in the pool.

    Raises:
        BenchmarkError: there is none, or the pool is too small to compare two rankings of it.
    """
    if not pairs.image_ids:
        raise BenchmarkError(
            f"all {pairs.equal} pairs ({pairs.split}) are one text twice, case and blanks aside; expected two wordings"
        )
    kept = np.flatnonzero(pool.find(pairs.image_ids) >= 0).tolist()
    if not kept:
        first = next(iter(pairs.image_ids), None)
        raise BenchmarkError(
            f"none of {len(pairs.image_ids)} pairs ({pairs.split}) has its image in the pool; first missing: {first!r}"
        )
    if len(pool.ids) < DEPTH:
        raise BenchmarkError(
            f"its pool has {len(pool.ids)} images; expected at least {DEPTH}: use a split with more, or leave it out"
        )
    ids, captions, rewordings = (
        [column[i] for i in kept] for column in (pairs.image_ids, pairs.captions, pairs.rewordings)
    )
    return Pairs(ids, captions, rewordings, pairs.split, pairs.equal, len(pairs.image_ids) - len(kept))


def measure(pairs: Pairs, pool: ImagePool, encoder: Encoder) -> Measured:
    """AO@10 and JS@10 between the two rankings, and both sides' recall; the pairs of one image form a cluster.

    Args:
        pairs: pairs whose images are all in the pool (see :func:`within`).
        pool: the images that are ranked, at least ten.
        encoder: the model.
    """
    features, index = unique_features(encoder.texts, [*pairs.captions, *pairs.rewordings])
    ranked = top_k(features, pool.features(encoder), DEPTH)
    count = len(pairs.captions)
    caption, rewording = ranked[index[:count]], ranked[index[count:]]
    owner = pool.find(pairs.image_ids)
    values = {
        f"ao@{DEPTH}": average_overlap(caption, rewording, DEPTH),
        f"js@{DEPTH}": jaccard(caption, rewording, DEPTH),
    }
    for name, side in (("caption", caption), ("rewording", rewording)):
        values |= {f"{name}_text_to_image_recall@{k}": recall_at_k(side, owner, k) for k in RECALL_DEPTHS}
    notes = {
        "protocol": "both rankings over all images of the pool; mean over pairs",
        "split": pairs.split,
        "images": len(pool.ids),
        "images_with_pairs": len(np.unique(owner)),
        "pairs": count,
        "pairs_with_equal_texts": pairs.equal,
        "pairs_without_image": pairs.without_image,
    }
    samples = {name: Sample(value, owner) for name, value in values.items()}
    return Measured(samples, notes, {"caption": caption, "rewording": rewording})


def per_query(pairs: Pairs, pool: ImagePool, base: Measured, tuned: Measured) -> pa.Table:
    """Every pair with both models' scores and ranked lists (:data:`paraclip_core.tables.PER_QUERY`)."""
    columns: list[pa.Array] = [pa.array(list(side)) for side in (pairs.image_ids, pairs.captions, pairs.rewordings)]
    for metric in (f"ao@{DEPTH}", f"js@{DEPTH}"):
        columns += [pa.array(measured.samples[metric].values) for measured in (base, tuned)]
    ids = pa.array(list(pool.ids))
    for measured in (base, tuned):
        columns += [_lists(ids, measured.ranked[side]) for side in ("caption", "rewording")]
    return pa.Table.from_arrays(columns, schema=PER_QUERY)


def _lists(ids: pa.Array, ranked: NDArray[np.int64]) -> pa.Array:
    offsets = pa.array(np.arange(0, ranked.size + 1, ranked.shape[1], dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, ids.take(pa.array(ranked.reshape(-1))))


def _pairs(rows: list[tuple[str, str, str]], split: str) -> Pairs:
    # The tokeniser folds case and blanks, so such a pair is one text twice and overlaps fully by definition.
    kept = [row for row in rows if _words(row[1]) != _words(row[2])]
    return Pairs([r[0] for r in kept], [r[1] for r in kept], [r[2] for r in kept], split, len(rows) - len(kept))


def _words(text: str) -> list[str]:
    return text.casefold().split()
