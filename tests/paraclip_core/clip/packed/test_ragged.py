"""Packing of token lists."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.clip.packed import Ragged
from paraclip_core.errors import InputError

token_lists = st.lists(st.lists(st.integers(0, 49407), max_size=9), max_size=12)


def _lists(ragged: Ragged) -> list[list[int]]:
    return [ragged.values[start:end].tolist() for start, end in zip(ragged.offsets, ragged.offsets[1:], strict=False)]


@given(token_lists, st.data())
def test_arrow_in_any_chunks_and_slices_gives_the_same_lists(lists: list[list[int]], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(lists)))
    array = pa.array(lists, pa.list_(pa.uint16()))
    assert _lists(Ragged.from_arrow(array)) == lists
    assert _lists(Ragged.from_arrow(array.slice(cut))) == lists[cut:]
    chunked = pa.chunked_array([array.slice(0, cut), array.slice(cut)])
    packed = Ragged.from_arrow(chunked)
    assert _lists(packed) == lists
    assert packed.values.dtype == np.uint16 and packed.offsets.dtype == np.int64
    assert packed.lengths.tolist() == [len(tokens) for tokens in lists]


@given(token_lists, st.data())
def test_take_picks_lists_in_any_order(lists: list[list[int]], data: st.DataObject) -> None:
    picks = data.draw(st.lists(st.integers(0, max(0, len(lists) - 1)), max_size=15)) if lists else []
    taken = Ragged.from_lists(lists).take(picks)
    assert _lists(taken) == [lists[pick] for pick in picks]


@given(token_lists)
def test_padded_is_the_lists_and_then_padding(lists: list[list[int]]) -> None:
    padded = Ragged.from_lists(lists).padded(10, pad=7)
    assert padded.tolist() == [tokens + [7] * (10 - len(tokens)) for tokens in lists]


def test_no_chunks_at_all() -> None:
    assert len(Ragged.from_arrow(pa.chunked_array([], pa.list_(pa.uint16())))) == 0
    assert len(Ragged.concatenate([])) == 0


def test_null_and_too_long_texts_are_named() -> None:
    with pytest.raises(InputError, match="row 1"):
        Ragged.from_arrow(pa.array([[1], None], pa.list_(pa.uint16())))
    with pytest.raises(InputError, match="text 1 has 3 tokens"):
        Ragged.from_lists([[1], [1, 2, 3]]).padded(2)
