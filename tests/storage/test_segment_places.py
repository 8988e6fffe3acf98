"""Rows of segments, and whose answer counts."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from storage.segment_places import SegmentPlaces, first_of

HIT = st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 9))


@given(st.lists(HIT, unique=True))
def test_the_first_segment_counts_and_in_it_the_first_row(hits: list[tuple[int, int, int]]) -> None:
    found = first_of(*(np.array([hit[part] for hit in hits], np.int64) for part in range(3)))
    best = {key: min(hit for hit in hits if hit[0] == key) for key in {hit[0] for hit in hits}}
    assert [hits[at] for at in found] == [best[key] for key in sorted(best)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(0, 9)), max_size=5))
def test_rows_between_segments_are_of_segments_that_are_gone(parts: list[tuple[int, int, int]]) -> None:
    owner: list[int | None] = []
    starts, ends, turns = [], [], []
    for gap, rows, turn in parts:
        owner += [None] * gap
        starts.append(len(owner))
        owner += [turn] * rows
        ends.append(len(owner))
        turns.append(turn)
    owner += [None]
    places = SegmentPlaces(*(np.array(values, np.int64) for values in (starts, ends, turns)))
    alive = places.alive(np.arange(len(owner)))
    assert alive.tolist() == [turn is not None for turn in owner]
    assert places.turn(np.flatnonzero(alive)).tolist() == [turn for turn in owner if turn is not None]
