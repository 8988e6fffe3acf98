"""The forest of prefixes against sets of prefixes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.clip.prefixes import Forest, alphabetical, forest_of, runs
from paraclip_core.clip.ragged import Ragged

Texts = list[list[int]]
few_words = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=20), min_size=1, max_size=30)


def path(forest: Forest, slot: int) -> tuple[int, ...]:
    """The tokens that a slot looks at, in the order of their positions."""
    size = forest.seen.shape[1]
    block, within = divmod(slot, size)
    nodes = forest.slots[block * size + np.flatnonzero(forest.seen[block, within])]
    nodes = nodes[np.argsort(forest.depths[nodes])]
    assert forest.depths[nodes].tolist() == list(range(len(nodes)))
    return tuple(forest.tokens[nodes].tolist())


@given(texts=few_words, slots=st.integers(1, 40), ordered=st.booleans())
def test_every_prefix_is_a_node_and_sees_itself(texts: Texts, slots: int, ordered: bool) -> None:
    ragged = Ragged.from_lists(texts)
    order = alphabetical(ragged) if ordered else np.arange(len(texts))
    forest = forest_of(ragged.take(order), slots)
    prefixes = {tuple(text[: end + 1]) for text in texts for end in range(len(text))}
    paths = [path(forest, home) for home in forest.homes]
    assert set(paths) == prefixes and (len(paths) == len(prefixes) or not ordered)
    assert forest.slots[forest.homes].tolist() == list(range(len(forest.tokens)))
    assert [path(forest, slot) for slot in forest.again] == [paths[node] for node in forest.slots[forest.again]]
    assert [paths[forest.ends[end]] for end in forest.texts] == [tuple(texts[number]) for number in order]
    # Slots that stand for no token see nothing but themselves.
    used = {*forest.homes.tolist(), *forest.again.tolist()}
    for slot in set(range(len(forest.slots))) - used:
        block, within = divmod(slot, forest.seen.shape[1])
        assert np.flatnonzero(forest.seen[block, within]).tolist() == [within]


@given(texts=few_words, budget=st.integers(1, 60))
def test_runs_hold_as_many_nodes_as_they_may(texts: Texts, budget: int) -> None:
    ragged = Ragged.from_lists(texts)
    ragged = ragged.take(alphabetical(ragged))
    cut = list(runs(ragged, budget))
    assert [number for run in cut for number in range(run.start, run.stop)] == list(range(len(texts)))
    for run in cut:
        nodes = len(forest_of(ragged.take(np.arange(run.start, run.stop))).tokens)
        assert nodes <= budget or run.stop - run.start == 1
        if run.stop < len(texts):
            assert len(forest_of(ragged.take(np.arange(run.start, run.stop + 1))).tokens) > budget


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_order_is_that_of_the_tokens(dtype: type[np.integer]) -> None:
    texts = [[300, 2], [300], [2, 300], [255], [65_000, 1], [256, 0, 5]]
    order = alphabetical(Ragged.from_lists(texts, dtype))
    assert [texts[number] for number in order] == sorted(texts)
    assert alphabetical(Ragged.from_lists([], dtype)).tolist() == []
    assert list(runs(Ragged.from_lists([], dtype), 5)) == []
