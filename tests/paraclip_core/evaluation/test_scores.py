"""Exact nearest neighbours against a full stable sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.errors import ModelError
from paraclip_core.evaluation import scores
from paraclip_core.evaluation.scores import pair_scores, top_k


def test_pair_scores_in_blocks() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 8)).astype(np.float16), rng.normal(size=(40, 8)).astype(np.float32)
    rows_a, rows_b = rng.integers(0, 50, 20_000), rng.integers(0, 40, 20_000)
    expected = [float(a[i].astype(float) @ b[j].astype(float)) for i, j in zip(rows_a[:99], rows_b[:99], strict=True)]
    found = pair_scores(a, rows_a, b, rows_b)
    np.testing.assert_allclose(found[:99], expected, rtol=1e-12)
    assert found.shape == (20_000,) and pair_scores(a, rows_a[:0], b, rows_b[:0]).shape == (0,)


def test_features_that_cannot_be_compared_are_refused() -> None:
    gallery = np.eye(3, dtype=np.float32)
    gallery[2, 1] = np.nan
    with pytest.raises(ModelError, match="query 0 and image 2"):
        top_k(np.eye(3, dtype=np.float32), gallery, 2)
    with pytest.raises(ModelError, match="same CLIP model"):
        top_k(np.ones((1, 3)), np.ones((1, 4)), 1)


def full_sort(queries: np.ndarray, gallery: np.ndarray, k: int) -> np.ndarray:
    scores = queries.astype(np.float32) @ gallery.astype(np.float32).T
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@given(st.integers(0, 9), st.integers(0, 40), st.integers(1, 12), st.integers(0, 10_000))
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
    monkeypatch.setattr(scores, "CELLS", 200)
    monkeypatch.setattr(scores, "GALLERY_ROWS", 7)
    np.testing.assert_array_equal(top_k(queries, gallery, 10), expected)
