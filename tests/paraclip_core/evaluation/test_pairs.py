"""Pairs of texts: ratios and differences of means, their intervals, and partners of unrelated queries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paraclip_core.evaluation import pairs
from paraclip_core.evaluation.intervals import Interval, Sample, components, delta_interval


def intervals(
    ours: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    statistic: Callable[[NDArray[np.float64], NDArray[np.int64]], float],
    base: NDArray[np.float64],
    tuned: NDArray[np.float64],
    clusters: NDArray[np.int64],
) -> tuple[Interval, NDArray[np.float64]]:
    """The interval by linearized values, and quantiles of the statistic's difference over draws of whole clusters."""
    rng, groups = np.random.default_rng(0), [np.flatnonzero(clusters == cluster) for cluster in np.unique(clusters)]
    draws = [np.concatenate([groups[g] for g in rng.integers(0, len(groups), len(groups))]) for _ in range(2000)]
    deltas = [statistic(tuned, drawn) - statistic(base, drawn) for drawn in draws]
    interval = delta_interval(Sample(ours(base), clusters), Sample(ours(tuned), clusters))
    return interval, np.quantile(deltas, [0.025, 0.975])


def test_a_margins_interval_is_that_of_two_means_of_each_draw() -> None:
    rng = np.random.default_rng(0)
    # Unequal numbers of both kinds, which differ from query to query.
    queries = np.repeat(np.arange(100), rng.integers(1, 6, 100))
    negative = rng.random(len(queries)) < 0.3
    base, gain = rng.random((2, len(queries)))

    def margin(values: NDArray[np.float64], rows: NDArray[np.int64]) -> float:
        return values[rows][~negative[rows]].mean() - values[rows][negative[rows]].mean()

    def ours(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return pairs._difference(values, negative)

    interval, expected = intervals(ours, margin, base, base + gain, queries)
    assert interval.delta == pytest.approx(gain[~negative].mean() - gain[negative].mean())
    assert (interval.low, interval.high) == pytest.approx(tuple(expected), abs=0.005)
    shifted = delta_interval(Sample(ours(base), queries), Sample(ours(base + 0.1), queries))
    assert (shifted.delta, shifted.low, shifted.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_a_chance_corrected_agreements_interval_is_that_of_each_draws_ratio() -> None:
    rng = np.random.default_rng(0)
    queries = np.repeat(np.arange(400), 2)
    unrelated, base, gain = rng.random((3, 800)) * np.array([[0.3], [0.5], [0.2]])

    def ratio(values: NDArray[np.float64], rows: NDArray[np.int64]) -> float:
        a, u = values[rows].mean(), unrelated[rows].mean()
        return (a - u) / (1 - u)

    interval, expected = intervals(
        lambda values: pairs._corrected(values, unrelated), ratio, base, base + gain, queries
    )
    assert interval.delta == pytest.approx(ratio(base + gain, np.arange(800)) - ratio(base, np.arange(800)))
    assert (interval.low, interval.high) == pytest.approx(tuple(expected), abs=0.002)
    assert not pairs._corrected(np.ones(3), np.ones(3)).any()


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=30))
def test_clusters_are_the_connected_components(rows: list[tuple[int, int]]) -> None:
    groups: list[set[int]] = []
    for row in rows:
        touched = [group for group in groups if group & {*row}]
        groups = [group for group in groups if not group & {*row}] + [set(row).union(*touched)]
    expected = [next(place for place, group in enumerate(groups) if row[0] in group) for row in rows]
    labels = components(*np.array(rows, np.int64).T).tolist()
    assert len(set(zip(labels, expected, strict=True))) == len(set(labels)) == len(set(expected))


@given(st.lists(st.integers(0, 6), min_size=2, max_size=20).filter(lambda names: len(set(names)) > 1))
def test_an_unrelated_query_is_of_another_cluster(names: list[int]) -> None:
    clusters = np.array(names)
    assert (clusters[pairs._of_other_cluster(clusters)] != clusters).all()
