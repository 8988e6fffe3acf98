"""Cleaning equals open_clip's own functions, character by character."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from paraclip_core.captions.clean import clean

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
