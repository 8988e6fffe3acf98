"""Keys by stems: forms and order of words do not tell texts apart, words do."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip.tasks.training.log_data import is_held_out
from paraclip_core.captions.stems import stem_keys, stems


@pytest.mark.parametrize(
    ("text", "other", "one"),
    [
        ("red car", "Red cars", True),
        ("running dogs", "dog runs", True),
        ("car, red", "red car", True),
        ("red car", "blue car", False),
        ("猫", "犬", False),
        ("?!", "!?", False),
    ],
)
def test_which_queries_are_one(text: str, other: str, one: bool) -> None:
    assert (stems(text) == stems(other)) is one
    keys = stem_keys([text, other], "salt")
    assert bool(keys[0] == keys[1]) is one
    if one:
        for share in (0.1, 0.3, 0.5, 0.9):
            assert len({*is_held_out(pa.array([text, other]), share).tolist()}) == 1


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_any_text_has_a_key_of_its_own_salt(texts: list[str]) -> None:
    assert all(stems(text) for text in texts)
    assert stem_keys(texts, "a").shape == (len(texts),)
    assert stem_keys(texts, "a").tolist() != stem_keys(texts, "b").tolist()
