"""Intervals against scipy, against a plain loop, and by their coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation import metrics
from paraclip_core.evaluation.metrics import GAIN, Sample, delta_interval, expected_half, images_needed


def paired(base: np.ndarray, tuned: np.ndarray, clusters: np.ndarray | None = None, gold: np.ndarray | None = None):  # noqa: ANN201
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
    found = metrics._rank_deltas(*paired(base, tuned, gold=gold), np.arange(30), iter([draws]))
    expected = [
        stats.spearmanr(tuned[d], gold[d]).statistic - stats.spearmanr(base[d], gold[d]).statistic  # pyright: ignore[reportAttributeAccessIssue]
        for d in draws
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_coverage_with_clusters() -> None:
    """Queries of one cluster share most of their noise: drawing clusters covers, drawing queries does not."""
    rng = np.random.default_rng(6)
    clusters = np.repeat(np.arange(60), 10)
    covered = np.zeros(2)
    for trial in range(200):
        difference = 0.3 + np.repeat(rng.normal(size=60), 10) + 0.1 * rng.normal(size=600)
        for way, labels in enumerate((clusters, np.arange(600))):
            found = delta_interval(
                *paired(np.zeros(600), difference, labels), resamples=300, confidence=0.9, seed=trial
            )
            covered[way] += found.low <= 0.3 <= found.high
    assert 0.82 <= covered[0] / 200 <= 0.96
    assert covered[1] / 200 < 0.6


def test_blocks_do_not_change_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    samples = paired(rng.random(40), rng.random(40), np.repeat(np.arange(10), 4))
    whole = delta_interval(*samples, resamples=500, confidence=0.95, seed=8)
    monkeypatch.setattr(metrics, "DRAWN", 100)
    assert delta_interval(*samples, resamples=500, confidence=0.95, seed=8) == whole
    assert whole.clusters == 10


def test_a_model_that_scores_all_pairs_alike_has_no_correlation() -> None:
    gold = np.arange(10.0)
    found = delta_interval(*paired(np.ones(10), gold, gold=gold), resamples=100, confidence=0.95, seed=0)
    assert found.delta == pytest.approx(1.0)
    assert found.low == pytest.approx(1.0)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(BenchmarkError, match="different queries"):
        delta_interval(*paired(np.zeros(3), np.zeros(4)), resamples=100, confidence=0.9, seed=0)
    one, other = (paired(np.zeros(3), np.zeros(3), np.array(clusters))[0] for clusters in ([0, 0, 1], [0, 1, 1]))
    with pytest.raises(BenchmarkError, match="different queries"):
        delta_interval(one, other, resamples=100, confidence=0.9, seed=0)
    with pytest.raises(BenchmarkError, match="at least two"):
        delta_interval(*paired(np.zeros(3), np.ones(3), np.zeros(3, int)), resamples=100, confidence=0.9, seed=0)


@pytest.mark.parametrize(("images", "half"), [(70, 4.0), (1000, 0.5)])
def test_a_gain_is_told_four_times_in_five_on_the_images_that_it_needs(images: int, half: float) -> None:
    needed = images_needed(images, half)
    rng, spread = np.random.default_rng(0), half / 1.96 * images**0.5
    gains = GAIN + spread / needed**0.5 * rng.standard_normal(20_000)
    assert np.mean(gains > 1.96 * spread / needed**0.5) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(("images", "pairs", "seen"), [(70, 70, 4.0), (750, 750, 0.97), (1000, 10_000, 0.51)])
def test_the_interval_to_expect_is_that_of_runs_so_far(images: int, pairs: int, seen: float) -> None:
    """Those of docs/benchmarks.md."""
    assert expected_half(images, pairs) == pytest.approx(seen, rel=0.15)
