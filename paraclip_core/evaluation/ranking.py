"""Exact nearest neighbours by inner product, in blocks, with one answer for ties."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paraclip_core.errors import ModelError

__all__ = ["top_k"]

CELLS = 1 << 22
"""Scores that are held at once (12 bytes each)."""
GALLERY_ROWS = 16_384


def top_k(queries: NDArray[np.floating], gallery: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Rows of the gallery with the largest inner products, best first; among equal scores the lower row comes first.

    Scores are float32 whatever the inputs are. Memory is bounded by a block of queries times the gallery; the gallery
    may be memory-mapped and is converted block by block.

    Args:
        queries: L2-normalised features, shape [n, d].
        gallery: L2-normalised features, shape [m, d].
        k: number of rows wanted; with fewer than k rows all of them are ranked.

    Returns:
        int64 [n, min(k, m)].

    Raises:
        ModelError: a feature is not a finite number, or the dimensions differ.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ModelError(
            f"features of shapes {queries.shape} and {gallery.shape} cannot be compared; "
            "both must come from the same CLIP model"
        )
    wanted = min(k, len(gallery))
    found = np.empty((len(queries), wanted), np.int64)
    if not wanted:
        return found
    step = max(1, CELLS // len(gallery))
    for start in range(0, len(queries), step):
        block = np.asarray(queries[start : start + step], np.float32)
        found[start : start + step] = _best(_scores(block, gallery), wanted)
    return found


def _scores(queries: NDArray[np.float32], gallery: NDArray[np.floating]) -> NDArray[np.float32]:
    scores = np.empty((len(queries), len(gallery)), np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(gallery), GALLERY_ROWS):
            block = np.asarray(gallery[start : start + GALLERY_ROWS], np.float32)
            np.matmul(queries, block.T, out=scores[:, start : start + GALLERY_ROWS])
    if not np.isfinite(scores).all():
        row, column = np.argwhere(~np.isfinite(scores))[0]
        raise ModelError(f"the score of query {row} and image {column} is not a finite number; recompute the features")
    return scores


def _best(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Sort by one whole number that holds the score above and the row, counted backwards, below: no two are equal."""
    bits = (scores + np.float32(0.0)).view(np.uint32)  # adding 0 turns -0 into 0
    # IEEE floats order like whole numbers once negative ones are flipped and positive ones moved above them.
    ordered = np.where(bits >> 31 == 1, ~bits, bits | np.uint32(1 << 31))
    keys = ordered.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(scores.shape[1], dtype=np.uint32)[::-1].astype(np.uint64)
    if k < keys.shape[1]:
        keys = np.partition(keys, keys.shape[1] - k, axis=1)[:, -k:]
    keys = np.sort(keys, axis=1)[:, ::-1]
    backwards = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return scores.shape[1] - 1 - backwards
