"""A set of keys is a set."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from paraclip_core.captions.keys import KeySet

KEYS = st.lists(st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**60, 2**60 - 1, 2**64 - 1]), max_size=30)


@given(st.lists(KEYS, max_size=8), KEYS)
@settings(max_examples=100)
def test_as_a_set(batches: list[list[int]], asked: list[int]) -> None:
    keys, seen = KeySet(), set[int]()
    for batch in batches:
        expected = []
        for key in batch:
            expected.append(key not in seen)
            seen.add(key)
        assert keys.add(np.array(batch, dtype=np.uint64)).tolist() == expected
        assert len(keys) == len(seen)
    assert keys.contains(np.array(asked, dtype=np.uint64)).tolist() == [key in seen for key in asked]
