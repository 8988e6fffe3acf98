"""Draws row by row: the right distribution, and nothing that depends on the neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare

from paraclip_core.paraphrase.engines import draws
from paraclip_core.paraphrase.engines.draws import RowDraws, row_key, uniform

LOGITS = [2.0, 1.5, 1.0, 1.0, 0.3, 0.0, -0.5, -4.0]
ROWS = 20_000


def keys(count: int, draw: int = 0) -> list[int]:
    return [row_key(0, f"text {i}", draw) for i in range(count)]


def drawn(logits: torch.Tensor, row_keys: list[int], t: float = 1.0, top_p: float = 1.0, step: int = 0) -> list[int]:
    """The only token that is left of each row."""
    ids = torch.zeros(len(row_keys), 5 + step, dtype=torch.long)
    scores = RowDraws(row_keys, t, top_p, 5)(ids, logits.clone())
    assert torch.isfinite(scores).sum(1).tolist() == [1] * len(row_keys)
    return scores.argmax(1).tolist()


def nucleus(t: float, top_p: float) -> NDArray[np.float64]:
    """The definition, token by token: the fewest most likely ones that hold `top_p`, scaled to 1."""
    p = torch.softmax(torch.tensor(LOGITS, dtype=torch.float64) / t, 0).numpy()
    kept, mass = np.zeros_like(p), 0.0
    for token in sorted(range(len(p)), key=lambda i: -p[i]):
        if mass < top_p:
            kept[token] = p[token]
        mass += p[token]
    return kept / kept.sum()


@pytest.mark.parametrize(("t", "top_p", "step"), [(1.0, 1.0, 0), (0.7, 0.8, 3), (1.6, 0.95, 1), (1.0, 0.01, 0)])
@pytest.mark.parametrize("by", ["request", "answer"])
def test_tokens_are_drawn_as_often_as_they_are_likely(t: float, top_p: float, step: int, by: str) -> None:
    # Different requests, and many answers to one request.
    own = keys(ROWS) if by == "request" else [row_key(0, "text", draw) for draw in range(ROWS)]
    counts = np.bincount(drawn(torch.tensor([LOGITS] * ROWS), own, t, top_p, step), minlength=len(LOGITS))
    expected = nucleus(t, top_p) * ROWS
    inside = expected > 0
    assert counts[~inside].sum() == 0
    if inside.sum() > 1:
        assert chisquare(counts[inside], expected[inside]).pvalue > 1e-4


def test_one_step_says_nothing_about_the_next() -> None:
    first, second = (drawn(torch.tensor([[0.0, 0.0]] * ROWS), keys(ROWS), step=step) for step in (0, 1))
    pairs = np.bincount(2 * np.array(first) + np.array(second), minlength=4)
    assert chisquare(pairs).pvalue > 1e-4


def test_noise_is_uniform_and_never_the_ends() -> None:
    found = uniform(np.array(keys(400), np.uint64), 7, np.tile(np.arange(250), (400, 1)))
    assert 0 < found.min() < found.max() < 1
    assert chisquare(np.histogram(found, 100, (0, 1))[0]).pvalue > 1e-4
    # Neighbouring tokens and rows.
    for a, b in ((found[:, :-1], found[:, 1:]), (found[:-1], found[1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02


@given(order=st.permutations(range(6)), size=st.integers(1, 6), top_p=st.sampled_from([0.3, 0.9, 1.0]))
@settings(max_examples=30, deadline=None)
def test_neighbours_do_not_matter(order: list[int], size: int, top_p: float) -> None:
    logits = torch.randn(6, 400, generator=torch.Generator().manual_seed(3))
    together = drawn(logits, keys(6), 0.8, top_p)
    for start in range(0, 6, size):
        rows = order[start : start + size]
        assert drawn(logits[rows], [keys(6)[row] for row in rows], 0.8, top_p) == [together[row] for row in rows]


@pytest.mark.parametrize("steepness", [0.2, 3.0, 8.0])
def test_looking_at_the_likeliest_first_changes_nothing(steepness: float, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = steepness * torch.randn(50, 2000, generator=torch.Generator().manual_seed(1))
    narrow = drawn(logits, keys(50), 1.0, 0.9)
    monkeypatch.setattr(draws, "NARROW", 5000)
    assert drawn(logits, keys(50), 1.0, 0.9) == narrow


def test_every_part_of_a_request_counts() -> None:
    assert len({row_key(0, "a", 0), row_key(1, "a", 0), row_key(0, "b", 0), row_key(0, "a", 1)}) == 4
    assert row_key(0, "\udce9", 0) != row_key(0, "é", 0)
