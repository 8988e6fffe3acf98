"""Thresholds of the tuned model against sorting all cosines."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.evaluation.thresholds import BINS, PER_UNIT, QUANTILES, ROWS, binned, matched, spread

WIDTH = 1 / PER_UNIT


def drawn(seed: int, queries: int, images: int, centre: float, scale: float) -> np.ndarray:
    cosines = np.random.default_rng(seed).normal(centre, scale, (queries, images))
    return np.clip(cosines, -1, 1).astype(np.float32)


@given(st.integers(0, 9999), st.integers(1, 20), st.integers(1, 40), st.floats(-0.9, 0.9), st.floats(0.001, 0.3))
def test_as_many_pairs_pass(seed: int, queries: int, images: int, centre: float, scale: float) -> None:
    base, tuned = drawn(seed, queries, images, centre, scale), drawn(seed + 1, queries, images, 0.3, 0.1)
    rows = matched(base.max(1), binned(base), binned(tuned), images)
    assert len(rows) <= ROWS
    ordered = sorted(tuned.reshape(-1).tolist(), reverse=True)
    for row in rows:
        # A cosine that equals a threshold but for rounding may be on either side of it.
        passing = [sum(value >= row.base + margin for value in base.reshape(-1).tolist()) for margin in (1e-6, -1e-6)]
        counted = round(row.images * queries)
        assert passing[0] <= counted <= passing[1]
        assert ordered[counted - 1] >= row.tuned - 1e-6
        assert counted == len(ordered) or ordered[counted] < row.tuned + WIDTH + 1e-6
        same = [sum(value >= row.base + margin for value in ordered) for margin in (1e-6, -1e-6)]
        assert same[0] <= round(row.unchanged * queries) <= same[1]


@given(st.integers(0, 9999), st.integers(1, 30), st.integers(1, 30))
def test_quantiles(seed: int, queries: int, images: int) -> None:
    cosines = drawn(seed, queries, images, 0.2, 0.1)
    found = spread(cosines.max(1), binned(cosines))
    for percent, value in zip(QUANTILES, found.random, strict=True):
        exact = np.quantile(cosines, percent / 100, method="inverted_cdf")
        assert value - 1e-6 <= exact < value + WIDTH + 1e-6
    for percent, value in zip(QUANTILES, found.first, strict=True):
        assert abs(value - np.quantile(cosines.max(1), percent / 100)) < 1e-4


def test_rows_cover_the_range_of_the_base() -> None:
    cosines = drawn(0, 200, 500, 0.2, 0.04)
    rows = matched(cosines.max(1), binned(cosines), binned(cosines + np.float32(0.1)), 500)
    assert [row.base for row in rows] == [0.2, 0.22, 0.24, 0.26, 0.28, 0.3, 0.32, 0.34]
    for row in rows:
        assert abs(row.tuned - row.base - 0.1) < 0.002 and row.unchanged > row.images
    assert rows[0].images > rows[-1].images > 0


def test_cosines_beyond_one_by_rounding() -> None:
    counts = binned(np.array([[-1.0000001, 1.0000001, 1.0]], np.float32))
    assert counts.shape == (BINS,) and counts[0] == 1 and counts[-1] == 2


def test_one_cosine_for_all_pairs() -> None:
    """As of a model that embeds all texts and images alike."""
    cosines = np.full((5, 4), 0.5, np.float32)
    (row,) = matched(cosines[:, 0], binned(cosines), binned(cosines), 4)
    assert (row.base, row.tuned, row.images, row.unchanged) == (0.5, 0.5, 4.0, 4.0)
