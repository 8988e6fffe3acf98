"""Search over stored features."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from paraclip_core.clip import search as module
from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.search import search
from paraclip_core.errors import ModelError


def test_nearest_first_and_ties_by_row(tiny: Callable[..., ClipModel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 3)
    clip = tiny()
    text = encode_texts(clip, ["two dogs"])[0]
    other = np.random.default_rng(0).normal(size=(5, 32))
    matrix = np.concatenate([other, text[None], text[None], -text[None]]).astype(np.float16)
    found = search(clip, matrix, [f"i{row}" for row in range(8)], "two dogs", k=20)
    assert [image for image, _ in found[:2]] == ["i5", "i6"] and found[-1][0] == "i7"
    assert found[0][1] == pytest.approx(1, abs=1e-3) and len(found) == 8
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    assert search(clip, matrix[:0], [], "two dogs") == []


def test_features_of_another_model(tiny: Callable[..., ClipModel]) -> None:
    with pytest.raises(ModelError, match="another image tower"):
        search(tiny(), np.zeros((2, 8), np.float16), ["a", "b"], "x")
