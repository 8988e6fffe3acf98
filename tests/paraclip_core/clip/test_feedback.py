"""Relevance feedback over image features."""

from __future__ import annotations

import numpy as np
import pytest

from paraclip_core.clip.search import refine

RNG = np.random.default_rng(0)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


CENTERS = unit(RNG.normal(size=(8, 64)))
IMAGES = unit(np.repeat(CENTERS, 50, axis=0) + 0.12 * RNG.normal(size=(400, 64)))
GROUP = np.repeat(np.arange(8), 50)
NOTHING = np.zeros((0, 64))


def precision(vector: np.ndarray, group: int, depth: int = 40) -> float:
    return float((GROUP[np.argsort(-(IMAGES @ vector))[:depth]] == group).mean())


def test_without_marks_it_is_the_query() -> None:
    assert refine(CENTERS[0], NOTHING, NOTHING) == pytest.approx(CENTERS[0], abs=1e-6)


def test_marks_find_what_the_query_missed() -> None:
    """The query lies between two groups of images; three marks each way say which one is meant."""
    query = unit(CENTERS[0] + CENTERS[1])
    refined = refine(query, IMAGES[50:53], IMAGES[:3])
    assert precision(refined, 1) > precision(query, 1) + 0.15
    assert np.linalg.norm(refined) == pytest.approx(1, abs=1e-5)


def test_right_or_wrong_alone_are_enough() -> None:
    query = unit(CENTERS[0] + CENTERS[1])
    before = precision(query, 1)
    assert precision(refine(query, IMAGES[50:53], NOTHING), 1) > before
    assert precision(refine(query, NOTHING, IMAGES[:3]), 1) > before
