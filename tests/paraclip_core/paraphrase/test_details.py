"""Gates on details: what they take for the same detail, and what not."""

from __future__ import annotations

import pytest

from paraclip_core.config import GateOptions
from paraclip_core.paraphrase.details import changed_colour, changed_negation, changed_number
from paraclip_core.paraphrase.pair import Pair

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
