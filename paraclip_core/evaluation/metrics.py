"""Exact rankings by inner product, measures of rankings and of scores, and how far a difference of two can be trusted.

Ranked lists are arrays of whole numbers, best first, without repeats inside a list. Measures are per query where there
is one: a :class:`Sample` holds the values behind a figure. Intervals are bootstrap percentiles of the difference of two
models that answered the same queries; whole clusters are drawn with replacement (Efron & Tibshirani, An Introduction to
the Bootstrap, 1993, ch. 8 and 13): the ten caption pairs of one image stand or fall together, so counting them as ten
queries would make intervals too narrow. Both models are measured on the same draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from paraclip_core.errors import BenchmarkError, ModelError

ROWS = 8192
CELLS = 1 << 22
"""Scores that are held at once (12 bytes each)."""
GALLERY_ROWS = 16_384


def top_k(queries: NDArray[np.floating], gallery: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Rows of the gallery with the largest inner products, best first, int64 [n, min(k, m)]; ties go to the lower row.

    Features are L2-normalized, queries [n, d] and gallery [m, d]; scores are float32 whatever they are. Memory is
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


def average_overlap(a: NDArray[np.integer], b: NDArray[np.integer], k: int = 10) -> NDArray[np.float64]:
    """Average overlap of each pair of ranked lists [n, ≥ k], float64 [n]: (1/k) Σ_{d=1..k} |A_{1:d} ∩ B_{1:d}| / d.

    It is top-weighted: an item that both lists hold at ranks i and j counts from depth max(i, j) on.
    (Cheng et al., arXiv 2405.03190, with the division by the depth that makes equal lists give 1.)
    """
    _check(a, b, k)
    later = np.maximum.outer(np.arange(k), np.arange(k))
    # An item seen from depth m + 1 on adds 1/d at every depth d > m.
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
    captions and one of them is enough, pass the ranked captions' image rows (``owner[ranked]``) and the image's own
    row: this is what CLIP_benchmark's zero-shot retrieval counts.
    """
    return (ranked[:, :k] == target[:, None]).any(axis=1).astype(np.float64)


def spearman(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Spearman's rank correlation in [-1, 1], ties with their mean rank; NaN where one side is constant."""
    if len(x) != len(y) or len(x) < 2:
        raise BenchmarkError(f"a rank correlation needs two lists of equal length ≥ 2, got {len(x)} and {len(y)}")
    a, b = mid_ranks(x), mid_ranks(y)
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 0 else float("nan")


def pair_scores(
    a: NDArray[np.floating], rows_a: NDArray[np.int64], b: NDArray[np.floating], rows_b: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Inner product of row `rows_a[i]` of `a` and row `rows_b[i]` of `b`; float64 [n], in blocks."""
    parts = [
        np.einsum("nd,nd->n", a[rows_a[i : i + ROWS]], b[rows_b[i : i + ROWS]], dtype=np.float64)
        for i in range(0, len(rows_a), ROWS)
    ]
    return np.concatenate([np.zeros(0), *parts])


def macro_weights(groups: Sequence[str]) -> NDArray[np.float64]:
    """What turns a mean over rows into the unweighted mean over their groups: n / (groups · rows of the group)."""
    kinds, index, counts = np.unique(np.array(groups), return_inverse=True, return_counts=True)
    return (len(groups) / (len(kinds) * counts))[index]


def mid_ranks(x: NDArray[np.floating]) -> NDArray[np.float64]:
    """Ranks from 1 on, equal values with the mean of their ranks; float64 [n]."""
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
    """Σ_{i,j<k} [a_i = b_j] · weight_{ij} of each pair, in blocks of rows so that memory stays small."""
    result = np.empty(len(a), np.float64)
    for start in range(0, len(a), ROWS):
        block = slice(start, start + ROWS)
        same = a[block, :k, None] == b[block, None, :k]
        result[block] = same.reshape(len(same), -1).astype(np.float64) @ weight.reshape(-1)
    return result


STRATUM = 1 << 40
"""Clusters from one multiple of it to the next belong to one data set of a bundle."""


@dataclass(frozen=True)
class Sample:
    """The values behind one figure: their mean, or, with `gold`, their rank correlation with it.

    Of several data sets (see :data:`STRATUM`) it is the unweighted mean of their correlations.
    """

    values: NDArray[np.float64]
    """One value for each query, shape [n]."""
    clusters: NDArray[np.int64]
    """Which queries belong together (one image's captions, say) and are not independent, shape [n]."""
    gold: NDArray[np.float64] | None = None
    """Human scores of the same items, shape [n], where the figure is Spearman's correlation."""

    def statistic(self) -> float:
        """The figure, as a fraction. A model that gives every pair the same score has no correlation, so 0."""
        if self.gold is None:
            return float(self.values.mean())
        values = [spearman(part.values, part.gold) for part in self.strata() if part.gold is not None]
        return float(np.mean([0.0 if np.isnan(value) else value for value in values]))

    def strata(self) -> list[Sample]:
        """The data sets of a bundle, each a sample; most samples are of one."""
        stratum = self.clusters // STRATUM
        parts = np.unique(stratum).tolist()
        if self.gold is None or len(parts) == 1:
            return [self]
        rows = [stratum == part for part in parts]
        return [Sample(self.values[row], self.clusters[row], self.gold[row]) for row in rows]


DRAWN = 1 << 21
"""Drawn items that are held at once."""
RESAMPLES, CONFIDENCE = 2000, 0.95
"""Draws behind each interval, and its coverage."""
GAIN = 2.0
"""Points that an evaluation should be able to tell."""
POWER = 0.8
"""How often it should tell them."""
SPREAD = 7.0, 13.0
"""Standard deviations of AO@10's difference, in points: between images, and between the pairs of one. They give the
intervals that the demo and Flickr8k have, see docs/benchmarks.md."""


@dataclass(frozen=True)
class Interval:
    """A difference and its interval, as fractions."""

    delta: float
    low: float
    high: float
    clusters: int
    """Independent groups of queries."""


def delta_interval(
    base: Sample, tuned: Sample, resamples: int = RESAMPLES, confidence: float = CONFIDENCE, seed: int = 0
) -> Interval:
    """Interval of ``tuned.statistic() - base.statistic()``, of the same queries in the same order."""
    if len(base.values) != len(tuned.values) or not np.array_equal(base.clusters, tuned.clusters):
        raise BenchmarkError("base and tuned were measured on different queries; evaluate both again")
    rng, clusters = np.random.default_rng(seed), 0
    parts = []
    # Each data set of a bundle is drawn by itself; most samples are of one.
    for before, after in zip(base.strata(), tuned.strata(), strict=True):
        _, cluster = np.unique(before.clusters, return_inverse=True)
        count = int(cluster.max()) + 1 if len(cluster) else 0
        if count < 2:
            raise BenchmarkError(f"an interval needs queries of at least two images or pairs, got {count}; add some")
        step = max(1, DRAWN // max(count, len(cluster)))
        draws = (rng.integers(0, count, (min(step, resamples - start), count)) for start in range(0, resamples, step))
        if before.gold is None:
            parts.append(_mean_deltas(after.values - before.values, cluster, draws))
        else:
            parts.append(_rank_deltas(before, after, cluster, draws))
        clusters += count
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.mean(parts, axis=0), [tail, 1.0 - tail])
    return Interval(tuned.statistic() - base.statistic(), float(low), float(high), clusters)


def _mean_deltas(
    difference: NDArray[np.float64], cluster: NDArray[np.intp], draws: Iterator[NDArray[np.int64]]
) -> NDArray[np.float64]:
    total = np.bincount(cluster, difference)
    size = np.bincount(cluster).astype(np.float64)
    return np.concatenate([total[drawn].sum(axis=1) / size[drawn].sum(axis=1) for drawn in draws])


def _rank_deltas(
    base: Sample, tuned: Sample, cluster: NDArray[np.intp], draws: Iterator[NDArray[np.int64]]
) -> NDArray[np.float64]:
    assert base.gold is not None
    gold, before, after = _Levels(base.gold), _Levels(base.values), _Levels(tuned.values)
    deltas = []
    for drawn in draws:
        # How often each cluster is in each draw, [draws, clusters].
        count = int(cluster.max()) + 1
        rows = np.arange(len(drawn))[:, None] * count
        drawn_times = np.bincount((drawn + rows).reshape(-1), minlength=len(drawn) * count).reshape(-1, count)
        times = drawn_times.astype(np.float64)[:, cluster]
        target = gold.ranks(times)
        deltas.append(
            _correlation(after.ranks(times), target, times) - _correlation(before.ranks(times), target, times)
        )
    return np.concatenate(deltas)


class _Levels:
    """A list's distinct values, so that the mid-ranks of any draw follow from counts alone, without sorting again."""

    def __init__(self, x: NDArray[np.float64]) -> None:
        self._order = np.argsort(x, kind="stable")
        _, self._level, count = np.unique(x, return_inverse=True, return_counts=True)
        self._starts = np.concatenate([[0], np.cumsum(count)[:-1]])

    def ranks(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mid-rank of every item in each draw, [draws, n]; `times` says how often the draw holds the item."""
        count = np.add.reduceat(times[:, self._order], self._starts, axis=1)
        return (np.cumsum(count, axis=1) - (count - 1.0) / 2.0)[:, self._level]


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted Pearson correlation of each row, 0 where one side is constant."""
    total = weight.sum(axis=1, keepdims=True)
    x = x - (weight * x).sum(axis=1, keepdims=True) / total
    y = y - (weight * y).sum(axis=1, keepdims=True) / total
    size = np.sqrt((weight * x * x).sum(axis=1) * (weight * y * y).sum(axis=1))
    shared = (weight * x * y).sum(axis=1)
    return np.divide(shared, size, out=np.zeros_like(shared), where=size > 0)


def images_needed(images: int, half: float) -> int:
    """On how many images the interval of a true gain of two points lies above zero, four times in five.

    The sample size of a paired comparison (Chow, Shao & Wang, Sample Size Calculations in Clinical Research, 2008, ch.
    3.1): n = ((z_(1-α/2) + z_0.8) · σ / gain)², with the σ of an image's difference that an interval of ± `half` points
    over `images` has, z_(1-α/2) · σ / √images = half.
    """
    z, power = (NormalDist().inv_cdf(share) for share in ((1 + CONFIDENCE) / 2, POWER))
    return math.ceil(images * ((1 + power / z) * half / GAIN) ** 2)


def expected_half(images: int, pairs: int) -> float:
    """Half the interval to expect of AO@10's difference, in points, before anything is measured."""
    between, within = SPREAD
    return NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt((between**2 + within**2 * images / pairs) / images)
