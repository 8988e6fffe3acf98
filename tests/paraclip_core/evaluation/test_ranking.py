"""Exact nearest neighbours against a full stable sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraclip_core.errors import ModelError
from paraclip_core.evaluation import ranking
from paraclip_core.evaluation.ranking import top_k


def full_sort(queries: np.ndarray, gallery: np.ndarray, k: int) -> np.ndarray:
    scores = queries.astype(np.float32) @ gallery.astype(np.float32).T
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@settings(deadline=None)
@given(st.integers(0, 9), st.integers(1, 40), st.integers(1, 12), st.integers(0, 10_000))
def test_ties_go_to_the_lowest_row(n: int, m: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries, gallery = (rng.integers(-1, 2, (rows, 3)).astype(np.float32) for rows in (n, m))
    found = top_k(queries, gallery, k)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, full_sort(queries, gallery, k))


def test_blocks_and_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    queries = rng.normal(size=(50, 16)).astype(np.float32)
    gallery = rng.normal(size=(90, 16)).astype(np.float16)
    expected = full_sort(queries, gallery, 10)
    monkeypatch.setattr(ranking, "CELLS", 200)
    monkeypatch.setattr(ranking, "GALLERY_ROWS", 7)
    np.testing.assert_array_equal(top_k(queries, gallery, 10), expected)


def test_more_wanted_than_there_are() -> None:
    assert top_k(np.ones((2, 3)), np.ones((4, 3)), 10).tolist() == [[0, 1, 2, 3]] * 2
    assert top_k(np.ones((2, 3)), np.ones((0, 3)), 10).shape == (2, 0)


def test_bad_features_are_refused() -> None:
    gallery = np.eye(3, dtype=np.float32)
    gallery[2, 1] = np.nan
    with pytest.raises(ModelError, match="query 0 and image 2"):
        top_k(np.eye(3, dtype=np.float32), gallery, 2)
    with pytest.raises(ModelError, match="same CLIP model"):
        top_k(np.ones((1, 3)), np.ones((1, 4)), 1)
