"""Which words two texts differ in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.paraphrase.pair import Pair
from paraclip_core.paraphrase.small_model.alignment import align, narrowed, new_words, unknown_words


@pytest.mark.parametrize(
    ("caption", "answer", "lost", "new", "unknown"),
    [
        ("a red car in the sea", "a red vehicle in the ocean", "car sea", "vehicle ocean", "vehicle ocean"),
        ("a dog on the beach", "a puppy at the shore", "", "puppy shore", ""),
        ("two dogs running", "two dogs run", "", "", ""),
        ("stock photo 88213 of a bus #4.jpg", "a bus", "", "", ""),
        ("a small green lamp left of a cup", "a lamp and a cup", "green", "", ""),
        ("a rabbit under a red cup", "a rabbit under a red cup of coffee", "", "coffee", "coffee"),
        ("a couple on a bench", "two on a bench", "", "", ""),
        ("12 balloons", "twelve balloons", "", "", ""),
        ("a dozen eggs", "12 eggs", "", "", ""),
        ("nobody is in the room", "no one is in the room", "", "", ""),
        ("a man who doesn't run", "a man that does not run", "", "", ""),
        ("a ball under a table", "a ball beneath a table", "", "", ""),
        ("a girl's hat", "the hat of a girl", "", "", ""),
        ("a woman on her cellphone", "a woman on her cell phone", "", "", ""),
        ("a cat on a window sill", "a cat on a windowsill", "", "", ""),
    ],
)
def test_align(caption: str, answer: str, lost: str, new: str, unknown: str) -> None:
    differ = align(caption, answer)
    assert (" ".join(differ.lost), " ".join(differ.new), " ".join(differ.unknown)) == (lost, new, unknown)


@pytest.mark.parametrize(
    ("caption", "answer", "wrong"),
    [
        ("a dog in the snow", "a dog in a snowstorm", "snowstorm"),
        ("a dog with a bone", "a dog with a jawbone", "jawbone"),
        ("a dog in the snow", "a dog in snowy weather", None),
        ("the woods in a photo", "the woodland in a photograph", None),
        ("a man swims", "a swimmer", None),
        ("hikers walk on a path", "hikes walking on a trail", "hikes"),
        ("hikers walk on a path", "people hiking on a trail", None),
        ("a skater jumps", "a skate is jumping", "skate"),
        ("a skateboarder jumps", "a person on a skateboard jumps", None),
        ("a skateboarder jumps", "a skater on a skateboard is jumping", None),
        ("an older girl", "an old girl", None),
        ("a red chair", "a red armchair", None),  # a list knows both, so another gate judges
    ],
)
def test_what_became_narrower_or_a_deed_is_named(caption: str, answer: str, wrong: str | None) -> None:
    assert narrowed(caption, answer, align(caption, answer)) == wrong


@given(st.text(max_size=60), st.text(max_size=60))
def test_unknown_words_are_new_and_nothing_is_lost_to_itself(one: str, two: str) -> None:
    differ = align(one, two)
    assert set(differ.unknown) <= set(differ.new)
    assert not set(differ.lost) & set(differ.new)
    assert not align(one, one).lost
    assert narrowed(one, one, align(one, one)) is None


def test_new_words_are_those_of_neither_text_in_any_form() -> None:
    pair = Pair("two dogs on a skate board", "two dogs skating", "A wet dog on three skateboards, running", 2)
    assert new_words(pair) == ["wet", "running"]


def test_another_word_for_a_known_thing_is_not_unknown() -> None:
    pair = Pair("a dog on a beach", "a dog on a beach", "a puppy on a wet shore", 1)
    assert new_words(pair) == ["puppy", "wet", "shore"] and "puppy" not in unknown_words(pair)
