"""What gates look at in an answer and what it was made from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.paraphrase.pair import Pair, jaccard


@given(st.lists(st.sampled_from("abcdef")), st.lists(st.sampled_from("abcdef")))
def test_jaccard(one: list[str], two: list[str]) -> None:
    assert jaccard(one, two) == jaccard(two, one)
    assert 0 <= jaccard(one, two) <= 1
    assert jaccard(one, one) == 1


def test_new_words_are_those_of_neither_text_in_any_form() -> None:
    pair = Pair("two dogs on a skate board", "two dogs skating", "A wet dog on three skateboards, running", 2)
    assert pair.new_words == ["wet", "running"]


def test_another_word_for_a_known_thing_is_not_unknown() -> None:
    pair = Pair("a dog on a beach", "a dog on a beach", "a puppy on a wet shore", 1)
    assert pair.new_words == ["puppy", "wet", "shore"] and "puppy" not in pair.unknown_words


def test_the_overlap_counts_the_caption_twice() -> None:
    pair = Pair("a red dog", "a wet puppy", "the wet puppies", 2)
    assert pair.content_overlap == pytest.approx((1 + 2 * 0) / 3)
