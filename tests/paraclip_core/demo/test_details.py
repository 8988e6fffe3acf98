"""Gates on details: what they take for the same detail, where a text puts its things, and what not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.config import GateOptions
from paraclip_core.demo.gates import (
    changed_colour,
    changed_negation,
    changed_number,
    directions,
    misplaced,
    new_relation,
    placed,
)
from paraclip_core.paraphrase.parse import Pair

OPTIONS = GateOptions()
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
UNITS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def pair(source: str, answer: str) -> Pair:
    return Pair(source, source, answer, 1)


@pytest.mark.parametrize("between", ["-", " "])
def test_a_number_is_the_same_in_words_and_digits(between: str) -> None:
    for ten, tens in enumerate(TENS, 2):
        for unit, units in enumerate(UNITS, 1):
            digits, spelled = f"{10 * ten + unit} dogs", f"{tens}{between}{units} dogs"
            assert changed_number(pair(digits, spelled), OPTIONS) is None
            assert changed_number(pair(spelled, digits), OPTIONS) is None
            assert changed_number(pair(spelled, f"{10 * ten} dogs"), OPTIONS) is not None


def test_long_numbers_in_digits_may_go_and_none_may_come() -> None:
    assert changed_number(pair("a dog 88213", "a puppy"), OPTIONS) is None
    assert changed_number(pair("twenty dogs", "many dogs"), OPTIONS) == "lost 20"
    assert changed_number(pair("a dog", "a dog 88213"), OPTIONS) == "says 88213, which the input does not"


@pytest.mark.parametrize(
    ("source", "answer", "why"),
    [
        ("a black and white cat", "a white and black cat", None),
        ("a black and white cat", "a black cat", "lost white"),
        ("a red ball and a blue car", "a blue ball and a red car", "blue ball was red"),
    ],
)
def test_colours_stay_with_their_things(source: str, answer: str, why: str | None) -> None:
    assert changed_colour(pair(source, answer), OPTIONS) == why


@pytest.mark.parametrize("denial", ["cannot", "can't", "does not", "doesn't", "doesn’t", "never"])
def test_a_denial_may_be_said_in_any_way(denial: str) -> None:
    assert changed_negation(pair(f"the dog {denial} jump", "the dog will not jump"), OPTIONS) is None
    assert changed_negation(pair(f"the dog {denial} jump", "the dog will jump"), OPTIONS) is not None


MISPLACED = [
    ("a black bus and a blue box in the hills", "a black bus in a blue box", "in box"),
    ("on the street, a red bus", "on a red bus in a highway", "on bus"),
    ("a red bird above a pink clock", "a red bird in a pink clock", "in clock"),
    ("a cat next to a lamp", "a cat under a lamp", "below lamp"),
    ("a black cat and a small yellow plane", "a black cat on a small yellow airplane", "on airplane"),
]
WELL_PLACED = [
    ("a red umbrella in the sea left of a tree", "a red umbrella in the ocean to the left of a tree"),
    ("a cup on top of a red table", "a cup on a table"),
    ("a hat on the table in front of a clock", "in front of a clock, a hat on a table"),
    ("a dog on the beach", "a dog at the shore"),
    ("a house on the street", "a house in the street"),
    ("a boy rides a donkey along a riverbed", "a boy on a donkey"),
    ("a boat behind a tree", "a boat at the back of a tree"),
    ("a lamp and a cup", "a lamp with a cup"),
]


@pytest.mark.parametrize(("caption", "answer", "wrong"), MISPLACED)
def test_what_is_elsewhere_is_named(caption: str, answer: str, wrong: str) -> None:
    assert misplaced(caption, answer) == wrong


@pytest.mark.parametrize(("caption", "answer"), WELL_PLACED)
def test_other_words_for_the_same_place_are_fine(caption: str, answer: str) -> None:
    assert misplaced(caption, answer) is None
    assert directions(caption) == directions(answer)


def test_over_may_stand_for_above() -> None:
    assert directions("a bird over a clock") == set()
    assert directions("a bird over a clock", loose=True) == directions("a bird above a clock") == {"above"}


@pytest.mark.parametrize(
    ("caption", "answer", "wrong"),
    [
        ("a dog runs near the water", "a dog running toward the water", "toward"),
        ("a dog runs to the water", "a dog running toward the water", None),
        ("three girls hold pillows", "three girls wearing pillows", "wearing"),
        ("a girl with a red hat", "a girl wearing a red hat", None),
        ("two dogs play on a carpet", "two dogs playing with a carpet", "with carpet"),
        ("two dogs play on the beach", "two dogs with the beach", None),
        ("two dogs play with a ball on a carpet", "two dogs playing on a carpet with a ball", None),
    ],
)
def test_a_relation_that_only_the_answer_tells_of_is_named(caption: str, answer: str, wrong: str | None) -> None:
    assert new_relation(caption, answer) == wrong


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a fish left of a house", {"left"}),
        ("a fish left on a house", set()),
        ("the tree at the right side of a man", {"right"}),
        ("the tree to the left", {"left"}),
        ("a dog turns left", set()),
        ("a cup underneath a chair in front of a house", {"below", "front"}),
        ("a man jumps over a fence", set()),
    ],
)
def test_directions(text: str, expected: set[str]) -> None:
    assert directions(text) == expected


def test_a_thing_stands_where_its_preposition_says() -> None:
    assert placed("a boy on a big red bus, near the pond") == {
        "person/boy": {"-"},
        "vehicle/bus": {"on"},
        "pond": {"next"},
    }


@given(st.text(max_size=60))
def test_a_text_agrees_with_itself(text: str) -> None:
    assert misplaced(text, text) is None
    assert new_relation(text, text) is None
    assert directions(text) == directions(text.upper())
