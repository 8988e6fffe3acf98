"""Near-duplicates, against all cosines at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paraclip_core.clip import neighbors
from paraclip_core.clip.neighbors import Neighbors, near_images


def unit(vectors: NDArray[np.float16]) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def pairs(near: Neighbors) -> list[tuple[int, int]]:
    return list(zip(near.first().tolist(), near.rows.tolist(), strict=True))


@given(
    count=st.integers(0, 40),
    least=st.floats(-0.5, 0.9),
    most=st.integers(1, 50),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=60)
def test_all_pairs_at_once_say_the_same(count: int, least: float, most: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count + 3, 6)).astype(np.float16)
    rows = rng.permutation(count + 3)[:count]
    near = near_images(features, rows, least, most)
    cosines = unit(features[rows]) @ unit(features[rows]).T
    for image in range(count):
        others = [other for other in np.argsort(-cosines[image], kind="stable") if other != image]
        expected = [other for other in others if cosines[image, other] >= least][:most]
        assert near.rows[near.starts[image] : near.starts[image + 1]].tolist() == expected
    assert (np.diff(near.starts) >= 0).all()
    assert near.starts[-1] == len(near.rows) == len(near.cosines)


def planted(images: int, copies: int, noise: float) -> tuple[NDArray[np.float16], list[tuple[int, int]]]:
    """Random images, and of the first ones a slightly changed copy each, in another order."""
    rng = np.random.default_rng(3)
    first = rng.normal(size=(images, 32))
    other = first[:copies] + noise * rng.normal(size=(copies, 32))
    order = rng.permutation(images + copies)
    place = np.argsort(order)
    features = np.concatenate([first, other])[order].astype(np.float16)
    return features, [(int(place[one]), int(place[images + one])) for one in range(copies)]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, copies = planted(300, 50, noise=0.15)
    rows = np.arange(len(features))
    whole = near_images(features, rows, 0.9, 8)
    assert {*copies} <= {*pairs(whole)} == {(other, one) for one, other in pairs(whole)}
    monkeypatch.setattr(neighbors, "COSINES", 350 * 64)
    calls: list[tuple[int, int | None]] = []
    near = near_images(features, rows, 0.9, 8, progress=lambda done, total, **_: calls.append((done, total)))
    assert pairs(near) == pairs(whole) and calls[-1] == (350, 350) and len(calls) == 6
