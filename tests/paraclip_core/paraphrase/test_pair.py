"""What gates look at in an answer and what it was made from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.paraphrase.pair import Pair, content_words, jaccard, once_per_pair, stem, words


@given(st.lists(st.sampled_from("abcdef")), st.lists(st.sampled_from("abcdef")))
def test_jaccard(one: list[str], two: list[str]) -> None:
    assert jaccard(one, two) == jaccard(two, one)
    assert 0 <= jaccard(one, two) <= 1
    assert jaccard(one, one) == 1


def test_the_overlap_counts_the_caption_twice() -> None:
    pair = Pair("a red dog", "a wet puppy", "the wet puppies", 2)
    assert pair.content_overlap == pytest.approx((1 + 2 * 0) / 3)


def test_words_are_plain_and_their_forms_meet() -> None:
    assert words("A girl's hat isn't Red; who's there?") == ["a", "girl", "hat", "isn't", "red", "who", "there"]
    assert content_words(["a", "girl", "is", "not", "running"]) == ["girl", "running"]
    assert {stem(word) for word in ("jumping", "jumps", "jumped")} == {"jump"}


def test_what_gates_share_is_computed_once() -> None:
    calls = []

    @once_per_pair
    def counted(pair: Pair) -> int:
        calls.append(pair)
        return len(calls)

    pair = Pair("a", "a", "b", 1)
    assert (counted(pair), counted(pair), counted(Pair("a", "a", "c", 1))) == (1, 1, 2)
