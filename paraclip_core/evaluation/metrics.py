"""Measures of rankings and of scores, per query if possible.

Ranked lists are integer arrays, best first, without repeats within a list.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from paraclip_core.errors import BenchmarkError

ROWS = 8192
"""Pairs of lists compared at once."""


def average_overlap(a: NDArray[np.integer], b: NDArray[np.integer], k: int = 10) -> NDArray[np.float64]:
    """Average overlap of each pair of ranked lists [n, ≥ k], float64 [n]: (1/k) Σ_{d=1..k} |A_{1:d} ∩ B_{1:d}| / d.

    It is top-weighted: an item that both lists hold at ranks i and j counts from depth max(i, j) on.
    (Cheng et al., arXiv 2405.03190, with the division by the depth that makes equal lists give 1.)
    """
    _check(a, b, k)
    later = np.maximum.outer(np.arange(k), np.arange(k))
    # An item shared from depth m + 1 on adds 1/d at every depth d > m.
    weight = np.cumsum((1.0 / np.arange(1, k + 1))[::-1])[::-1][later] / k
    return _weighted_matches(a, b, k, weight)


def jaccard(a: NDArray[np.integer], b: NDArray[np.integer], k: int = 10) -> NDArray[np.float64]:
    """Jaccard similarity of the top-k sets of each pair of ranked lists [n, ≥ k]: |A ∩ B| / |A ∪ B|, float64 [n]."""
    _check(a, b, k)
    shared = _weighted_matches(a, b, k, np.ones((k, k)))
    return shared / (2 * k - shared)


def recall_at_k(ranked: NDArray[np.integer], target: NDArray[np.integer], k: int) -> NDArray[np.float64]:
    """1 for each query with a right answer (`target`, [n]) among its first k (`ranked`, [n, ≥ k]), else 0; float64 [n].

    For text→image pass the ranked image rows and the caption's image row. For image→text, where an image has several
    captions and one of them suffices, pass the ranked captions' image rows (``owner[ranked]``) and the image's own
    row, as CLIP_benchmark's zero-shot retrieval does.
    """
    return (ranked[:, :k] == target[:, None]).any(axis=1).astype(np.float64)


def reciprocal_rank(ranked: NDArray[np.integer], target: NDArray[np.integer]) -> NDArray[np.float64]:
    """1 / rank of each query's right answer (`target`, [n]) among its ranked ones ([n, k]), 0 if it is not among them;
    float64 [n]. Its mean is MRR@k."""
    hits = ranked == target[:, None]
    return np.where(hits.any(axis=1), 1.0 / (hits.argmax(axis=1) + 1), 0.0)


def spearman(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Spearman's rank correlation in [-1, 1], ties with their mean rank; NaN if one side is constant."""
    if len(x) != len(y) or len(x) < 2:
        raise BenchmarkError(f"a rank correlation needs two lists of equal length ≥ 2, got {len(x)} and {len(y)}")
    a, b = mid_ranks(x), mid_ranks(y)
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 0 else float("nan")


def macro_weights(groups: Sequence[str]) -> NDArray[np.float64]:
    """Weights that turn a mean over rows into the unweighted mean over groups: n / (groups · rows of the group)."""
    kinds, index, counts = np.unique(np.array(groups), return_inverse=True, return_counts=True)
    return (len(groups) / (len(kinds) * counts))[index]


def mid_ranks(x: NDArray[np.floating]) -> NDArray[np.float64]:
    """Ranks from 1 on, equal values sharing the mean of their ranks; float64 [n]."""
    _, level, count = np.unique(np.asarray(x), return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2.0)[level]


def _check(a: NDArray[np.integer], b: NDArray[np.integer], k: int) -> None:
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b):
        raise BenchmarkError(f"ranked lists must come in pairs, got shapes {a.shape} and {b.shape}")
    shortest = min(a.shape[1], b.shape[1])
    if k < 1 or shortest < k:
        raise BenchmarkError(
            f"overlap at {k} needs ranked lists of at least {k} images, got {shortest}; "
            f"use a split with more, or leave the benchmark out"
        )


def _weighted_matches(
    a: NDArray[np.integer], b: NDArray[np.integer], k: int, weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Σ_{i,j<k} [a_i = b_j] · weight_{ij} of each pair, in blocks of rows to bound memory."""
    result = np.empty(len(a), np.float64)
    for start in range(0, len(a), ROWS):
        block = slice(start, start + ROWS)
        same = a[block, :k, None] == b[block, None, :k]
        result[block] = same.reshape(len(same), -1).astype(np.float64) @ weight.reshape(-1)
    return result
