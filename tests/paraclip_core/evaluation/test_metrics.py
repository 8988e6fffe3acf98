"""Measures against brute force, scipy and known values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.metrics import average_overlap, jaccard, mid_ranks, recall_at_k, spearman


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


@given(st.data())
def test_against_brute_force(data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 12))
    lists = st.permutations(range(15))
    pairs = data.draw(st.lists(st.tuples(lists, lists), min_size=1, max_size=6))
    a, b = (np.array([pair[side] for pair in pairs]) for side in (0, 1))
    np.testing.assert_allclose(average_overlap(a, b, k), [brute_overlap(list(x), list(y), k) for x, y in pairs])
    np.testing.assert_allclose(jaccard(a, b, k), [brute_jaccard(list(x), list(y), k) for x, y in pairs])
    np.testing.assert_allclose(average_overlap(a, b, k), average_overlap(b, a, k))


def test_many_rows_are_cut_into_blocks() -> None:
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


@given(st.lists(st.tuples(st.integers(-5, 5), st.floats(-3, 3, width=16)), min_size=3, max_size=40))
def test_spearman_against_scipy(pairs: list[tuple[int, float]]) -> None:
    x, y = (np.array(side, float) for side in zip(*pairs, strict=True))
    np.testing.assert_array_equal(mid_ranks(x), stats.rankdata(x))
    if len(set(x)) > 1 and len(set(y)) > 1:
        assert spearman(x, y) == pytest.approx(float(stats.spearmanr(x, y).statistic), abs=1e-12)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        assert np.isnan(spearman(x, y))
