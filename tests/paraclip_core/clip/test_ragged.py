"""Token lists, and their prefix trie against sets of prefixes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.clip.ragged import PrefixTrie, Ragged, alphabetical, prefix_trie, trie_chunks

token_lists = st.lists(st.lists(st.integers(0, 49407), max_size=9), max_size=12)


def _lists(ragged: Ragged) -> list[list[int]]:
    return [ragged.values[start:end].tolist() for start, end in zip(ragged.offsets, ragged.offsets[1:], strict=False)]


@given(token_lists, st.data())
def test_arrow_in_any_chunks_and_slices_gives_the_same_lists_which_can_be_picked_and_padded(
    lists: list[list[int]], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(lists)))
    array = pa.array(lists, pa.list_(pa.uint16()))
    assert _lists(Ragged.from_arrow(array)) == lists
    assert _lists(Ragged.from_arrow(array.slice(cut))) == lists[cut:]
    chunked = pa.chunked_array([array.slice(0, cut), array.slice(cut)])
    packed = Ragged.from_arrow(chunked)
    assert _lists(packed) == lists
    assert packed.values.dtype == np.uint16 and packed.offsets.dtype == np.int64
    assert packed.lengths.tolist() == [len(tokens) for tokens in lists]
    picks = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=15)) if lists else []
    assert _lists(packed.take(picks)) == [lists[pick] for pick in picks]
    assert packed.padded(10, pad=7).tolist() == [tokens + [7] * (10 - len(tokens)) for tokens in lists]


Texts = list[list[int]]
few_words = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=20), min_size=1, max_size=30)


def path(trie: PrefixTrie, slot: int) -> tuple[int, ...]:
    """The tokens that a slot attends to, in the order of their positions."""
    size = trie.mask.shape[1]
    block, within = divmod(slot, size)
    nodes = trie.slot_nodes[block * size + np.flatnonzero(trie.mask[block, within])]
    nodes = nodes[np.argsort(trie.positions[nodes])]
    assert trie.positions[nodes].tolist() == list(range(len(nodes)))
    return tuple(trie.tokens[nodes].tolist())


@given(texts=few_words, slots=st.integers(1, 40), ordered=st.booleans())
def test_every_prefix_is_a_node_and_attends_to_itself(texts: Texts, slots: int, ordered: bool) -> None:
    ragged = Ragged.from_lists(texts)
    order = alphabetical(ragged) if ordered else np.arange(len(texts))
    trie = prefix_trie(ragged.take(order), slots)
    prefixes = {tuple(text[: end + 1]) for text in texts for end in range(len(text))}
    paths = [path(trie, home) for home in trie.primary_slot]
    assert set(paths) == prefixes and (len(paths) == len(prefixes) or not ordered)
    assert trie.slot_nodes[trie.primary_slot].tolist() == list(range(len(trie.tokens)))
    assert [path(trie, slot) for slot in trie.extra_slots] == [
        paths[node] for node in trie.slot_nodes[trie.extra_slots]
    ]
    assert [paths[trie.ends[end]] for end in trie.text_ends] == [tuple(texts[number]) for number in order]
    # Slots that stand for no token see nothing but themselves.
    used = {*trie.primary_slot.tolist(), *trie.extra_slots.tolist()}
    for slot in set(range(len(trie.slot_nodes))) - used:
        block, within = divmod(slot, trie.mask.shape[1])
        assert np.flatnonzero(trie.mask[block, within]).tolist() == [within]


@given(texts=few_words, budget=st.integers(1, 60))
def test_chunks_hold_as_many_nodes_as_they_may(texts: Texts, budget: int) -> None:
    ragged = Ragged.from_lists(texts)
    ragged = ragged.take(alphabetical(ragged))
    cut = list(trie_chunks(ragged, budget))
    assert [number for run in cut for number in range(run.start, run.stop)] == list(range(len(texts)))
    for run in cut:
        nodes = len(prefix_trie(ragged.take(np.arange(run.start, run.stop))).tokens)
        assert nodes <= budget or run.stop - run.start == 1
        if run.stop < len(texts):
            assert len(prefix_trie(ragged.take(np.arange(run.start, run.stop + 1))).tokens) > budget


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_order_is_that_of_the_tokens_and_nothing_is_no_error(dtype: type[np.integer]) -> None:
    texts = [[300, 2], [300], [2, 300], [255], [65_000, 1], [256, 0, 5]]
    order = alphabetical(Ragged.from_lists(texts, dtype))
    assert [texts[number] for number in order] == sorted(texts)
    nothing = Ragged.from_lists([], dtype)
    assert alphabetical(nothing).tolist() == list(trie_chunks(nothing, 5)) == []
    assert len(Ragged.from_arrow(pa.chunked_array([], pa.list_(pa.uint16())))) == len(Ragged.concatenate([])) == 0
