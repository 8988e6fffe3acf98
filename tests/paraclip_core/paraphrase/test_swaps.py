"""Answers with single words in other words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from paraclip_core.paraphrase.swaps import SWAPS, Answers, with_swaps
from paraclip_core.paraphrase.synonyms import Synonyms

KNOWN = {"quick": ("fast",), "fast": ("quick",), "lamp": ("lantern",), "lantern": ("lamp",)}


def synonyms() -> Synonyms:
    def fetch(words: Sequence[str]) -> Mapping[str, Sequence[str]]:
        return {word: KNOWN[word] for word in words if word in KNOWN}

    return Synonyms(fetch, lambda texts: np.ones((len(texts), 1), np.float32))


def test_what_the_model_said_comes_first_and_stays() -> None:
    answers: Answers = {"a lamp": (b"key", ["one", "a lamp"])}
    found = with_swaps(answers, {"a lamp": "a lamp"}, 1, synonyms())
    assert found == {"a lamp": (b"key", ["one", "a lamp", "a lantern"])}


def test_a_text_without_synonyms_keeps_its_answers() -> None:
    answers: Answers = {"a dog": (b"key", ["a dog"])}
    assert with_swaps(answers, {"a dog": "a dog"}, 2, synonyms()) == answers


def test_step_1_swaps_one_word_and_step_2_more() -> None:
    text = "a quick lamp"
    for step, most in SWAPS.items():
        _, found = with_swaps({text: (b"", [])}, {text: text}, step, synonyms())[text]
        assert max(len(set(answer.split()) - set(text.split())) for answer in found) == min(most, 2)


def test_step_2_first_leaves_the_new_words_of_step_1() -> None:
    caption, first = "a quick lamp", "a quick lantern"
    _, found = with_swaps({first: (b"", [])}, {first: caption}, 2, synonyms())[first]
    # "lantern" is what step 1 put; leading back to "lamp" would undo it.
    assert found[0] == "a fast lantern"
