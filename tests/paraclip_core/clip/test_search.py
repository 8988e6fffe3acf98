"""Search over stored features against all cosines at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.clip import search as module
from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.search import Searcher, search
from paraclip_core.errors import InputError, ModelError


def test_nearest_first_and_ties_by_row(tiny: Callable[..., ClipModel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 3)
    clip = tiny()
    text = encode_texts(clip, ["two dogs"])[0]
    other = np.random.default_rng(0).normal(size=(5, 32))
    matrix = np.concatenate([other, text[None], text[None], -text[None]]).astype(np.float16)
    (hits,) = search(clip, Searcher(matrix, [f"i{row}" for row in range(8)]), ["two dogs"], k=20)
    assert [image for image, _ in hits[:2]] == ["i5", "i6"] and hits[-1][0] == "i7"
    assert hits[0][1] == pytest.approx(1, abs=1e-3) and len(hits) == 8
    assert [score for _, score in hits] == sorted((score for _, score in hits), reverse=True)
    assert search(clip, Searcher(matrix[:0], []), ["two dogs"]) == [[]]


@pytest.mark.parametrize("held", [0, 1 << 30])
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 40), k=st.integers(1, 50))
def test_as_sorting_all_scores_does(held: int, seed: int, count: int, k: int) -> None:
    """Few different vectors, so that there are many ties inside of blocks and between them."""
    rng = np.random.default_rng(seed)
    # Unit vectors of halves, whose products are exact whatever the order of adding.
    corners = rng.choice([-0.5, 0.5], (4, 4)).astype(np.float32)
    features, queries = corners[rng.integers(0, 4, count)], corners[rng.integers(0, 4, 3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", 7)
        rows, scores = Searcher(features, [str(row) for row in range(count)], held).nearest(queries, k)
    expected = np.argsort(-(queries @ features.T), axis=1, kind="stable")[:, :k]
    assert np.array_equal(rows, expected)
    assert np.array_equal(scores, np.take_along_axis(queries @ features.T, expected, 1))


def test_features_of_another_model_or_not_finite_are_reported(tiny: Callable[..., ClipModel]) -> None:
    with pytest.raises(ModelError, match="another image encoder"):
        search(tiny(), Searcher(np.zeros((2, 8), np.float16), ["a", "b"]), ["x"])
    features = np.ones((3, 4), np.float32)
    features[1, 2] = np.nan
    with pytest.raises(InputError, match=r"'b' \(row 1\) are not finite"):
        Searcher(features, ["a", "b", "c"])
