"""Thresholds on the cosine of query and image: how a value for the base translates to the tuned model.

A search that cuts its results off at a cosine keeps its number of results if the tuned model's threshold lets as many
(query, image) pairs pass as the base's did: quantile matching.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PER_UNIT = 10_000
"""Bins per unit of the cosine."""
BINS = 2 * PER_UNIT + 1
"""Bin i counts cosines from i / PER_UNIT - 1 up to the next bin's."""
DIGITS = 4
QUANTILES = (5, 25, 50, 75, 95)
"""Percentages."""
ROWS = 12
"""Maximum number of thresholds that are translated."""


@dataclass(frozen=True)
class Spread:
    """Quantiles of one model's cosines, in the order of :data:`QUANTILES`."""

    first: Sequence[float]
    """Of a query and its first image."""
    random: Sequence[float]
    """Of a query and any image."""


@dataclass(frozen=True)
class Threshold:
    """A threshold of the base, and what it corresponds to with the tuned model."""

    base: float
    tuned: float
    """The threshold of the tuned model that lets as many (query, image) pairs pass."""
    images: float
    """Images per query that pass the base's threshold, on average."""
    unchanged: float
    """Images per query that pass if the tuned model is used with the base's threshold."""


def binned(cosines: NDArray[np.float32]) -> NDArray[np.int64]:
    """Count cosines by bin, int64 [BINS]; those beyond ±1 by rounding belong to the outermost bins."""
    places = np.clip((cosines + 1.0) * PER_UNIT, 0, BINS - 1).astype(np.int32)
    return np.bincount(places.reshape(-1), minlength=BINS)


def spread(first: NDArray[np.float32], counts: NDArray[np.int64]) -> Spread:
    """Quantiles of the first images' cosines [n], and of the cosines that `counts` holds, as lower ends of bins."""
    up_to = np.cumsum(counts)
    places = np.searchsorted(up_to, np.array(QUANTILES) / 100 * up_to[-1])
    exact = np.quantile(first.astype(np.float64), np.array(QUANTILES) / 100)
    return Spread([round(float(value), DIGITS) for value in exact], [_lower_end(int(place)) for place in places])


def matched(
    first: NDArray[np.float32], base: NDArray[np.int64], tuned: NDArray[np.int64], images: int
) -> Sequence[Threshold]:
    """Translate round thresholds from the base's median image to all but its best first images.

    `first` are the base's cosines of first images, [n]; `base` and `tuned` are counted cosines of the same queries
    with all `images`.
    """
    known = spread(first, base)
    passing = [np.cumsum(counts[::-1])[::-1] for counts in (base, tuned)]
    queries = passing[0][0] / images
    rows = []
    for value in _round_values(known.random[QUANTILES.index(50)], known.first[QUANTILES.index(95)]):
        place = round((value + 1) * PER_UNIT)
        if passing[0][place]:
            shown = (round(float(passed[place] / queries), 2) for passed in passing)
            rows.append(Threshold(value, _lower_end(_matching(place, *passing)), *shown))
    return rows


def _matching(place: int, base: NDArray[np.int64], tuned: NDArray[np.int64]) -> int:
    """The bin of `tuned` from which as many cosines pass as from the bin `place` of `base`; more if ties forbid it.

    Where bins between two cosines are empty, several do; the chosen one has the relative position of `place`.
    """
    (low, high), (other_low, other_high) = (
        (
            int(np.searchsorted(-passing, -base[place], side="left")),
            int(np.searchsorted(-passing, -base[place], side="right")) - 1,
        )
        for passing in (base, tuned)
    )
    width = max(0, other_high - other_low)
    return other_high - round((high - place) * width / max(1, high - low))


def _round_values(low: float, high: float) -> list[float]:
    """At most :data:`ROWS` round numbers from low to high, which are ends of bins."""
    # In units of bins, so that every step is a whole number.
    start, end = (round(value * PER_UNIT) for value in (low, high))
    for power in range(DIGITS + 1):
        for step in (part * 10**power for part in (1, 2, 5)):
            values = [number * step for number in range(math.ceil(start / step), math.floor(end / step) + 1)]
            if len(values) <= ROWS:
                return [value / PER_UNIT for value in values]
    raise AssertionError(f"cosines from {low} to {high}")


def _lower_end(place: int) -> float:
    return round(place / PER_UNIT - 1, DIGITS) + 0.0  # adding 0 turns -0 into 0
