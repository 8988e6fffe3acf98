"""Exact inner-product scores: the best rows of a gallery for each query, or scores of given pairs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paraclip_core.errors import ModelError

ROWS = 8192
"""Pairs scored at once."""
CELLS = 1 << 22
"""Scores in memory at once (12 bytes each)."""
GALLERY_ROWS = 16_384
"""Gallery rows converted at once."""


def top_k(queries: NDArray[np.floating], gallery: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Rows of the gallery with the largest inner products, best first, int64 [n, min(k, m)]; ties go to the lower row.

    Features are L2-normalized, queries [n, d] and gallery [m, d]; scores are float32 whatever their dtype. Memory is
    bounded by a block of queries times the gallery, which may be memory-mapped and is converted block by block.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ModelError(
            f"features of shapes {queries.shape} and {gallery.shape} cannot be compared; "
            "both must come from the same CLIP model"
        )
    wanted = min(k, len(gallery))
    rows = np.empty((len(queries), wanted), np.int64)
    if not wanted:
        return rows
    # Imported here, because it imports torch.
    import torch

    from paraclip_core.clip.search import best

    step = max(1, CELLS // len(gallery))
    for start in range(0, len(queries), step):
        block = np.asarray(queries[start : start + step], np.float32)
        rows[start : start + step] = best(torch.from_numpy(_scores(block, gallery)), wanted)[1].numpy()
    return rows


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


def pair_scores(
    a: NDArray[np.floating], rows_a: NDArray[np.int64], b: NDArray[np.floating], rows_b: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Inner product of row `rows_a[i]` of `a` and row `rows_b[i]` of `b`; float64 [n], in blocks."""
    parts = [
        np.einsum("nd,nd->n", a[rows_a[i : i + ROWS]], b[rows_b[i : i + ROWS]], dtype=np.float64)
        for i in range(0, len(rows_a), ROWS)
    ]
    return np.concatenate([np.zeros(0), *parts])
