"""Gates on the meaning of single words, with cosines that are given."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.config import GateOptions
from paraclip_core.demo.gates import (
    align,
    compared_words,
    narrowed,
    new_words,
    unknown_words,
)
from paraclip_core.paraphrase.gates import gates_of
from paraclip_core.paraphrase.meaning import Compare
from paraclip_core.paraphrase.parse import Pair

OPTIONS = GateOptions(preset="small-model", min_similarity=0.7, min_caption_similarity=0.6)


class Cosines:
    """Cosines that are given, and which texts were asked about."""

    def __init__(self, cosines: dict[tuple[str, str], float], other: float = 0.0) -> None:
        self._cosines, self._other = cosines, other
        self.asked: set[str] = set()

    def cosine(self, one: str, two: str) -> float:
        self.asked.update((one, two))
        return self._cosines.get((one, two), self._cosines.get((two, one), self._other))


def first(pair: Pair, cosines: dict[tuple[str, str], float], other: float = 0.0) -> str | None:
    compare, gates = Cosines(cosines, other), gates_of(OPTIONS)
    meaning = gates.meaning.items()
    reason = next((name for name, gate in meaning if gate(pair, OPTIONS, cast(Compare, cast(Any, compare)))), None)
    assert compare.asked <= set(gates.compared(pair))
    return reason


def texts(caption: str, answer: str, step: int = 1, source: str | None = None) -> Pair:
    return Pair(caption, source or caption, answer, step)


def near(pair: Pair) -> dict[tuple[str, str], float]:
    return {(pair.source, pair.answer): 0.9, (pair.caption, pair.answer): 0.9}


def test_whole_texts_must_be_near() -> None:
    pair = texts("a dog", "the dog")
    assert first(pair, {}) == "low_similarity"
    assert first(pair, near(pair)) is None
    second = texts("a dog", "the dog", 2, "one dog")
    assert first(second, {("one dog", "the dog"): 0.9, ("a dog", "the dog"): 0.5}) == "low_caption_similarity"


def test_a_new_word_must_stand_for_a_lost_one() -> None:
    pair = texts("a cat in the sea", "a cat in the ocean")
    assert first(pair, near(pair) | {("sea", "ocean"): 0.8}) is None
    assert first(pair, near(pair) | {("sea", "ocean"): 0.4}) == "invented_word"
    added = texts("a rabbit under a cup", "a rabbit under a cup of coffee")
    # However near to a word that is still there.
    assert first(added, near(added) | {("cup", "coffee"): 0.9}) == "invented_word"


def test_one_lost_word_is_not_said_with_three() -> None:
    pair = texts("a bird by the car", "a bird by the vehicle near a parking garage")
    assert first(pair, near(pair), other=0.9) == "invented_word"


def test_a_word_of_the_caption_must_not_go() -> None:
    pair = texts("a blue ball and a fish on the street", "a blue ball on the street")
    assert first(pair, near(pair)) == "lost_word"


def test_words_are_compared_only_where_texts_differ() -> None:
    assert compared_words(texts("a dog", "the dog")) == set()


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
