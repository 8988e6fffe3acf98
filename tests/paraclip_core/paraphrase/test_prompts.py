"""Prompts: published wording, structure that no caption changes, and what a caption looks like inside one."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.config import ParaphraseOptions
from paraclip_core.errors import ConfigError
from paraclip_core.paraphrase.prompts import FEW_SHOT, PAPER, PromptTemplate, neutralize, prompt_for

TEMPLATES = [*PAPER.values(), *FEW_SHOT.values()]


def test_the_paper_prompts_are_word_for_word_the_published_ones_and_hashes_never_change() -> None:
    assert PAPER[1].messages("a dog") == (
        ("user", 'Paraphrase the given caption "a dog" concisely while preserving the meaning.'),
    )
    published = (
        'Paraphrase the given text "{}" concisely while preserving the meaning and avoiding use of existing words.'
    )
    assert PAPER[2].messages("a dog") == (("user", published.replace("{}", "a dog")),)
    # Or every generation would be asked for again, and paid for.
    turns = (("system", "Be brief."), ("user", "a"), ("assistant", "b"))
    template = PromptTemplate("own/1", turns, "Say ", ".", quoted=True)
    assert template.hash.hex() == "9055e4bc557169225a83992b0b2de4a0"


@given(st.text(max_size=60))
def test_neutralising_twice_changes_nothing_more(text: str) -> None:
    assert neutralize(neutralize(text)) == neutralize(text)
    assert neutralize("a {dog} 5 < 6, 100% [sic] <3") == "a {dog} 5 < 6, 100% [sic] < 3"
    # An invisible character goes, on a longer way than plain text takes.
    assert neutralize(f"{text}\u200b") == neutralize(text)


def test_own_prompts_replace_one_step_only_and_have_one_slot() -> None:
    options = ParaphraseOptions(prompt_2="Say {} in other words.")
    assert prompt_for(options, 1) is FEW_SHOT[1]
    assert prompt_for(options, 2).messages("a {} dog") == (("user", "Say a {} dog in other words."),)
    assert prompt_for(ParaphraseOptions(prompts="paper"), 1) is PAPER[1]
    for own in ("no slot", "{} twice {}"):
        with pytest.raises(ConfigError, match="prompt_1 must hold"):
            prompt_for(ParaphraseOptions(prompt_1=own), 1)


def test_every_word_of_a_prompt_counts_in_its_hash() -> None:
    hashes = [template.hash for template in TEMPLATES]
    hashes += [prompt_for(ParaphraseOptions(prompt_1=own), 1).hash for own in ("a {}", "a {} ", "a{} ", '"{}"')]
    assert len(set(hashes)) == len(hashes)
    assert all(len(digest) == 16 for digest in hashes)
    own = PromptTemplate("own/1", (("user", "a"), ("assistant", "b")), "Say ", ".")
    changes: dict[str, Any] = {"id": "own/2", "before": "Say", "after": "!"}
    changes["turns"] = (("user", "ab"), ("assistant", ""))
    changes |= dict.fromkeys(("quoted", "tidied"), True)
    assert set(changes) == {field.name for field in fields(own)}
    changed = {replace(own, **{name: value}).hash for name, value in changes.items()}
    assert len(changed) == len(changes) and own.hash not in changed
