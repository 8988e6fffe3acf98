"""Cleaning equals open_clip's own functions, character by character; words where blanks separate them, and where none
do."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paraclip_core.captions.clean import clean, count_words

PIECES = (
    "&", "&amp;", "&lt;", "&#0;", "&#129;", "&#x80;", "&#13;", "& ", "&\r", "&\x0b", "\x00", "\x1b[31m", "\x1c", "\x7f",
    "\r\n", "\t", "  ", "\u2019", "ﬁ", "Ａ", "\u3000", "â€™", "Ã©", "\xa0", "<b>", "</b>", "it's", "é", "e\u0301",
    "\ufeff", "\u200b", "\U0001f600", "notit;", "&notit;", "&amp;amp;lt;", "a dog", ";", "#", "\x85", "\u2028",
)  # fmt: skip


def reference(text: str) -> str:
    from open_clip.tokenizer import basic_clean, whitespace_clean

    return whitespace_clean(basic_clean(text))


TRICKY = st.lists(st.sampled_from(PIECES) | st.text(st.characters(max_codepoint=127), max_size=5), max_size=8)


@given(st.text() | TRICKY.map("".join))
@example("&\r")
@example("&\x0b")
@example("&")
@example("R&D")
@example("a & b\n")
@example("\x1c")
@settings(max_examples=600, deadline=None)
def test_any_text(text: str) -> None:
    assert clean(text) == reference(text)


WORDS = {
    "狗": 1,
    "一只狗在沙滩上奔跑": 5,
    "一只狗在沙滩上奔跑.": 5,
    "两只狗, 一个球": 4,
    "3只狗和Bob": 4,
    "犬がビーチを走っている": 6,
    "สุนัขกำลังวิ่งบนชายหาด": 6,
    "หมา": 1,
}


@pytest.mark.parametrize("text", WORDS)
def test_scripts_without_blanks(text: str) -> None:
    assert count_words(text) == WORDS[text]


@pytest.mark.parametrize(
    "text", ["a dog .", "dog", "café au lait", "개가 해변에서 달린다", "собака на пляже", "\N{DOG FACE} dog"]
)
def test_all_others_have_the_words_that_blanks_separate(text: str) -> None:
    assert count_words(text) == text.count(" ") + 1
