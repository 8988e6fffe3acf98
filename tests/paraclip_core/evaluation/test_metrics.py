"""Exact nearest neighbours against a full stable sort; measures against brute force, scipy and known values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from paraclip_core.errors import BenchmarkError, ModelError
from paraclip_core.evaluation import metrics
from paraclip_core.evaluation.metrics import (
    GAIN,
    Sample,
    average_overlap,
    delta_interval,
    expected_half,
    images_needed,
    jaccard,
    mid_ranks,
    pair_scores,
    recall_at_k,
    spearman,
    top_k,
)


def brute_overlap(a: list[int], b: list[int], k: int) -> float:
    return sum(len(set(a[:d]) & set(b[:d])) / d for d in range(1, k + 1)) / k


def brute_jaccard(a: list[int], b: list[int], k: int) -> float:
    return len(set(a[:k]) & set(b[:k])) / len(set(a[:k]) | set(b[:k]))


def one(metric, a: list[int], b: list[int], k: int) -> float:  # noqa: ANN001
    return float(metric(np.array([a]), np.array([b]), k)[0])


TEN = list(range(10))


@pytest.mark.parametrize(
    ("a", "b", "k", "overlap", "js"),
    [
        ([1, 2, 3], [3, 2, 1], 3, 0.5, 1.0),
        (TEN, [0, 1, 2, 3, 4, 15, 16, 17, 18, 19], 10, 0.8228, 1 / 3),
        (TEN, [15, 16, 17, 18, 19, 0, 1, 2, 3, 4], 10, 0.1772, 1 / 3),
        (TEN, TEN, 10, 1.0, 1.0),
        (TEN, list(range(20, 30)), 10, 0.0, 0.0),
    ],
)
def test_known_values(a: list[int], b: list[int], k: int, overlap: float, js: float) -> None:
    assert one(average_overlap, a, b, k) == pytest.approx(overlap, abs=5e-5)
    assert one(jaccard, a, b, k) == pytest.approx(js, abs=1e-12)


@settings(deadline=None)
@given(st.data())
def test_against_brute_force(data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 12))
    lists = st.permutations(range(15))
    pairs = data.draw(st.lists(st.tuples(lists, lists), min_size=1, max_size=6))
    a, b = (np.array([pair[side] for pair in pairs]) for side in (0, 1))
    np.testing.assert_allclose(average_overlap(a, b, k), [brute_overlap(list(x), list(y), k) for x, y in pairs])
    np.testing.assert_allclose(jaccard(a, b, k), [brute_jaccard(list(x), list(y), k) for x, y in pairs])
    np.testing.assert_allclose(average_overlap(a, b, k), average_overlap(b, a, k))


def test_pair_scores_and_many_rows_that_are_cut_into_blocks() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 8)).astype(np.float16), rng.normal(size=(40, 8)).astype(np.float32)
    rows_a, rows_b = rng.integers(0, 50, 20_000), rng.integers(0, 40, 20_000)
    expected = [float(a[i].astype(float) @ b[j].astype(float)) for i, j in zip(rows_a[:99], rows_b[:99], strict=True)]
    scores = pair_scores(a, rows_a, b, rows_b)
    np.testing.assert_allclose(scores[:99], expected, rtol=1e-12)
    assert scores.shape == (20_000,) and pair_scores(a, rows_a[:0], b, rows_b[:0]).shape == (0,)
    rng = np.random.default_rng(0)
    a, b = (np.argsort(rng.random((20_000, 12)), axis=1) for _ in range(2))
    picked = [0, 8191, 8192, 19_999]
    expected = [brute_overlap(a[i].tolist(), b[i].tolist(), 10) for i in picked]
    np.testing.assert_allclose(average_overlap(a, b)[picked], expected)


def test_what_cannot_be_measured_is_refused() -> None:
    long, short = np.zeros((1, 10), int), np.zeros((1, 7), int)
    for a, b in ((long, short), (short, long)):
        with pytest.raises(BenchmarkError, match="at least 10 images, got 7"):
            average_overlap(a, b)
    for other in (np.zeros((2, 10), int), np.zeros(1, int)):
        with pytest.raises(BenchmarkError, match="pairs"):
            jaccard(long, other)
    assert spearman(np.arange(2.0), np.arange(2.0)) == 1
    for x, y in ((3, 2), (1, 1)):
        with pytest.raises(BenchmarkError, match=f"{x} and {y}"):
            spearman(np.arange(float(x)), np.arange(float(y)))
    gallery = np.eye(3, dtype=np.float32)
    gallery[2, 1] = np.nan
    with pytest.raises(ModelError, match="query 0 and image 2"):
        top_k(np.eye(3, dtype=np.float32), gallery, 2)
    with pytest.raises(ModelError, match="same CLIP model"):
        top_k(np.ones((1, 3)), np.ones((1, 4)), 1)
    with pytest.raises(BenchmarkError, match="different queries"):
        delta_interval(*paired(np.zeros(3), np.zeros(4)), resamples=100, confidence=0.9, seed=0)
    one, other = (paired(np.zeros(3), np.zeros(3), np.array(clusters))[0] for clusters in ([0, 0, 1], [0, 1, 1]))
    with pytest.raises(BenchmarkError, match="different queries"):
        delta_interval(one, other, resamples=100, confidence=0.9, seed=0)
    with pytest.raises(BenchmarkError, match="at least two"):
        delta_interval(*paired(np.zeros(3), np.ones(3), np.zeros(3, int)), resamples=100, confidence=0.9, seed=0)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 8), st.integers(0, 1000))
def test_recall_both_ways_against_a_loop(images: int, per_image: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(images), per_image)
    scores = rng.random((len(owner), images))
    to_image = np.argsort(-scores, axis=1)
    expected = [int(owner[t]) in sorted(range(images), key=lambda i: -scores[t, i])[:k] for t in range(len(owner))]
    assert recall_at_k(to_image, owner, k).tolist() == [float(hit) for hit in expected]
    to_text = np.argsort(-scores.T, axis=1)
    expected = [
        bool({t for t in range(len(owner)) if owner[t] == i} & set(np.argsort(-scores[:, i])[:k].tolist()))
        for i in range(images)
    ]
    assert recall_at_k(owner[to_text], np.arange(images), k).tolist() == [float(hit) for hit in expected]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.floats(-3, 3, width=16)), min_size=3, max_size=40))
def test_spearman_against_scipy(pairs: list[tuple[int, float]]) -> None:
    x, y = (np.array(side, float) for side in zip(*pairs, strict=True))
    np.testing.assert_array_equal(mid_ranks(x), stats.rankdata(x))
    if len(set(x)) > 1 and len(set(y)) > 1:
        assert spearman(x, y) == pytest.approx(float(stats.spearmanr(x, y).statistic), abs=1e-12)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        assert np.isnan(spearman(x, y))


def full_sort(queries: np.ndarray, gallery: np.ndarray, k: int) -> np.ndarray:
    scores = queries.astype(np.float32) @ gallery.astype(np.float32).T
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@settings(deadline=None)
@given(st.integers(0, 9), st.integers(1, 40), st.integers(1, 12), st.integers(0, 10_000))
def test_ties_go_to_the_lowest_row(n: int, m: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries, gallery = (rng.integers(-1, 2, (rows, 3)).astype(np.float32) for rows in (n, m))
    ranked = top_k(queries, gallery, k)
    assert ranked.dtype == np.int64
    np.testing.assert_array_equal(ranked, full_sort(queries, gallery, k))


def test_blocks_and_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    queries = rng.normal(size=(50, 16)).astype(np.float32)
    gallery = rng.normal(size=(90, 16)).astype(np.float16)
    expected = full_sort(queries, gallery, 10)
    monkeypatch.setattr(metrics, "CELLS", 200)
    monkeypatch.setattr(metrics, "GALLERY_ROWS", 7)
    np.testing.assert_array_equal(top_k(queries, gallery, 10), expected)


def test_more_wanted_than_there_are() -> None:
    assert top_k(np.ones((2, 3)), np.ones((4, 3)), 10).tolist() == [[0, 1, 2, 3]] * 2
    assert top_k(np.ones((2, 3)), np.ones((0, 3)), 10).shape == (2, 0)


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
    deltas = metrics._rank_deltas(*paired(base, tuned, gold=gold), np.arange(30), iter([draws]))
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
    monkeypatch.setattr(metrics, "DRAWN", 100)
    assert delta_interval(*samples, resamples=500, confidence=0.95, seed=8) == whole
    assert whole.clusters == 10


def test_a_model_that_scores_all_pairs_alike_has_no_correlation() -> None:
    gold = np.arange(10.0)
    interval = delta_interval(*paired(np.ones(10), gold, gold=gold), resamples=100, confidence=0.95, seed=0)
    assert interval.delta == pytest.approx(1.0)
    assert interval.low == pytest.approx(1.0)


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
