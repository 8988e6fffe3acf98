"""Intervals against scipy, and how often they cover the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation import intervals
from paraclip_core.evaluation.intervals import Sample, delta_interval


def test_samples_without_an_interval_are_refused() -> None:
    with pytest.raises(BenchmarkError, match="different queries"):
        delta_interval(*paired(np.zeros(3), np.zeros(4)), resamples=100, confidence=0.9, seed=0)
    one, other = (paired(np.zeros(3), np.zeros(3), np.array(clusters))[0] for clusters in ([0, 0, 1], [0, 1, 1]))
    with pytest.raises(BenchmarkError, match="different queries"):
        delta_interval(one, other, resamples=100, confidence=0.9, seed=0)
    with pytest.raises(BenchmarkError, match="at least two"):
        delta_interval(*paired(np.zeros(3), np.ones(3), np.zeros(3, int)), resamples=100, confidence=0.9, seed=0)


def paired(
    base: np.ndarray, tuned: np.ndarray, clusters: np.ndarray | None = None, gold: np.ndarray | None = None
) -> tuple[Sample, Sample]:
    clusters = np.arange(len(base)) if clusters is None else clusters
    return Sample(base, clusters, gold), Sample(tuned, clusters, gold)


def test_simple_mean_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    base, tuned = rng.random(300), rng.random(300) + 0.05
    ours = delta_interval(*paired(base, tuned), resamples=20_000, confidence=0.9, seed=1)
    theirs = stats.bootstrap(
        (tuned - base,), np.mean, n_resamples=20_000, confidence_level=0.9, method="percentile", rng=2
    ).confidence_interval
    assert ours.delta == pytest.approx(float(np.mean(tuned - base)))
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=2e-3)


def test_rank_correlation_of_each_draw_equals_scipys() -> None:
    rng = np.random.default_rng(5)
    gold, base, tuned = (np.round(rng.random(30) * 8) for _ in range(3))
    draws = rng.integers(0, 30, (20, 30))
    deltas = intervals._rank_deltas(*paired(base, tuned, gold=gold), np.arange(30), iter([draws]))
    expected = [
        stats.spearmanr(tuned[d], gold[d]).statistic - stats.spearmanr(base[d], gold[d]).statistic  # pyright: ignore[reportAttributeAccessIssue]
        for d in draws
    ]
    np.testing.assert_allclose(deltas, expected, atol=1e-12)


def test_coverage_with_clusters() -> None:
    """Queries of one cluster share most of their noise: drawing clusters covers, drawing queries does not."""
    rng = np.random.default_rng(6)
    clusters = np.repeat(np.arange(60), 10)
    covered = np.zeros(2)
    for trial in range(200):
        difference = 0.3 + np.repeat(rng.normal(size=60), 10) + 0.1 * rng.normal(size=600)
        for way, labels in enumerate((clusters, np.arange(600))):
            interval = delta_interval(
                *paired(np.zeros(600), difference, labels), resamples=300, confidence=0.9, seed=trial
            )
            covered[way] += interval.low <= 0.3 <= interval.high
    assert 0.82 <= covered[0] / 200 <= 0.96
    assert covered[1] / 200 < 0.6


def test_blocks_do_not_change_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    samples = paired(rng.random(40), rng.random(40), np.repeat(np.arange(10), 4))
    whole = delta_interval(*samples, resamples=500, confidence=0.95, seed=8)
    monkeypatch.setattr(intervals, "DRAWN", 100)
    assert delta_interval(*samples, resamples=500, confidence=0.95, seed=8) == whole
    assert whole.clusters == 10


def test_a_model_that_scores_all_pairs_alike_has_no_correlation() -> None:
    gold = np.arange(10.0)
    interval = delta_interval(*paired(np.ones(10), gold, gold=gold), resamples=100, confidence=0.95, seed=0)
    assert interval.delta == pytest.approx(1.0)
    assert interval.low == pytest.approx(1.0)
