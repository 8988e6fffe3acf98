"""Bootstrap intervals of the difference between two models that answered the same queries, and how many tell a gain.

Percentile intervals; whole clusters are drawn with replacement (Efron & Tibshirani, An Introduction to the Bootstrap,
1993, ch. 8 and 13): the ten caption pairs of one image stand or fall together, so counting them as ten queries would
make intervals too narrow. Both models are measured on the same draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.base import Sample

CELLS = 1 << 21
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
        draws = _draws(count, max(count, len(cluster)), resamples, rng)
        if before.gold is None:
            parts.append(_mean_deltas(after.values - before.values, cluster, draws))
        else:
            parts.append(_rank_deltas(before, after, cluster, draws))
        clusters += count
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.mean(parts, axis=0), [tail, 1.0 - tail])
    return Interval(tuned.statistic() - base.statistic(), float(low), float(high), clusters)


def _draws(count: int, width: int, resamples: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    step = max(1, CELLS // width)
    for start in range(0, resamples, step):
        yield rng.integers(0, count, (min(step, resamples - start), count))


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
        times = _times(drawn, int(cluster.max()) + 1)[:, cluster]
        target = gold.ranks(times)
        deltas.append(
            _correlation(after.ranks(times), target, times) - _correlation(before.ranks(times), target, times)
        )
    return np.concatenate(deltas)


def _times(drawn: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """How often each cluster is in each draw, [draws, count]."""
    rows = np.arange(len(drawn))[:, None] * count
    return np.bincount((drawn + rows).reshape(-1), minlength=len(drawn) * count).reshape(-1, count).astype(np.float64)


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
