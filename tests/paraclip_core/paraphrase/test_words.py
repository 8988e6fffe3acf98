"""Words are plain, and their forms meet."""

from __future__ import annotations

import pytest

from paraclip_core.paraphrase.pair import Pair
from paraclip_core.paraphrase.words import content_words, stem, words


def test_words_are_plain_and_their_forms_meet() -> None:
    assert words("A girl's hat isn't Red; who's there?") == ["a", "girl", "hat", "isn't", "red", "who", "there"]
    assert content_words(["a", "girl", "is", "not", "running"]) == ["girl", "running"]
    assert {stem(word) for word in ("jumping", "jumps", "jumped")} == {"jump"}
    pair = Pair("a red dog", "a wet puppy", "the wet puppies", 2)
    assert pair.content_overlap == pytest.approx((1 + 2 * 0) / 3)
