"""Confidence intervals for the difference of two models' figures.

A :class:`Sample` holds the values behind a figure. Intervals are bootstrap percentiles of the difference of two models
on the same queries; whole clusters are drawn with replacement (Efron & Tibshirani, An Introduction to the Bootstrap,
1993, ch. 8 and 13). The ten caption pairs of one image are correlated, so counting them as ten queries would make
intervals too narrow. Both models are measured on the same draw.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.metrics import spearman

STRATUM = 1 << 40
"""Cluster numbers between two multiples of it belong to one dataset of a bundle."""


@dataclass(frozen=True)
class Sample:
    """The values behind one figure: their mean, or, with `gold`, their rank correlation with it.

    For several datasets (see :data:`STRATUM`) it is the unweighted mean of their correlations.
    """

    values: NDArray[np.float64]
    """One value for each query, shape [n]."""
    clusters: NDArray[np.int64]
    """Which queries belong together (one image's captions, say) and are not independent, shape [n]."""
    gold: NDArray[np.float64] | None = None
    """Human scores of the same items, shape [n], if the figure is Spearman's correlation."""

    def statistic(self) -> float:
        """The figure, as a fraction; the correlation is 0 for a model that gives every pair the same score."""
        if self.gold is None:
            return float(self.values.mean())
        values = [spearman(part.values, part.gold) for part in self.strata() if part.gold is not None]
        return float(np.mean([0.0 if np.isnan(value) else value for value in values]))

    def strata(self) -> list[Sample]:
        """The datasets of a bundle, each as a sample; most samples have one."""
        stratum = self.clusters // STRATUM
        parts = np.unique(stratum).tolist()
        if self.gold is None or len(parts) == 1:
            return [self]
        rows = [stratum == part for part in parts]
        return [Sample(self.values[row], self.clusters[row], self.gold[row]) for row in rows]


def components(*columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Clusters of rows that share a number, directly or through other rows: a label for each row, int64 [n].

    Each column, [n], has one number for a row; in all columns a number means the same text or image.
    """
    _, numbers = np.unique(np.stack(columns), return_inverse=True)
    numbers = numbers.reshape(len(columns), -1)
    labels = np.arange(numbers.max(initial=-1) + 1)
    while True:
        lowest = labels[numbers].min(axis=0)
        merged = labels.copy()
        for column in numbers:
            np.minimum.at(merged, column, lowest)
        merged = merged[merged]
        if np.array_equal(merged, labels):
            return labels[numbers[0]]
        labels = merged


DRAWN = 1 << 21
"""Drawn items in memory at once."""
RESAMPLES, CONFIDENCE = 2000, 0.95
"""Draws behind each interval, and its coverage."""
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
"""Standard errors between a mean and the ends of its interval."""


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
    """Interval of ``tuned.statistic() - base.statistic()``; both must have the same queries in the same order."""
    if len(base.values) != len(tuned.values) or not np.array_equal(base.clusters, tuned.clusters):
        raise BenchmarkError("base and tuned were measured on different queries; evaluate both again")
    rng, clusters = np.random.default_rng(seed), 0
    parts = []
    # Each dataset of a bundle is drawn separately; most samples have one.
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
        # How often each draw contains each cluster, [draws, clusters].
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
    """A list's distinct values, so that the mid-ranks of any draw follow from counts, without sorting again."""

    def __init__(self, x: NDArray[np.float64]) -> None:
        self._order = np.argsort(x, kind="stable")
        _, self._level, count = np.unique(x, return_inverse=True, return_counts=True)
        self._starts = np.concatenate([[0], np.cumsum(count)[:-1]])

    def ranks(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mid-rank of every item in each draw, [draws, n]; `times` says how often the draw contains the item."""
        count = np.add.reduceat(times[:, self._order], self._starts, axis=1)
        return (np.cumsum(count, axis=1) - (count - 1.0) / 2.0)[:, self._level]


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted Pearson correlation of each row, 0 if one side is constant."""
    total = weight.sum(axis=1, keepdims=True)
    x = x - (weight * x).sum(axis=1, keepdims=True) / total
    y = y - (weight * y).sum(axis=1, keepdims=True) / total
    size = np.sqrt((weight * x * x).sum(axis=1) * (weight * y * y).sum(axis=1))
    shared = (weight * x * y).sum(axis=1)
    return np.divide(shared, size, out=np.zeros_like(shared), where=size > 0)
