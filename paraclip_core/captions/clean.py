"""Cleaning of captions, as open_clip does it before it tokenizes.

It is equal to ``whitespace_clean(basic_clean(text))``: ftfy fixes mojibake, curly quotes, ligatures, full-width
letters and line breaks, removes terminal escapes and control characters (NUL among them) and normalizes to NFC; HTML
entities are unescaped twice; runs of white space become one blank. Tags stay, and so does case.

Cleaning twice is not the same as cleaning once (``&amp;amp;amp;lt;`` loses two levels each time), so a caption is
cleaned exactly once, at ingest, and the tokenizer takes it as it is.
"""

from __future__ import annotations

import html
import re

import ftfy

# What can change under cleaning by more than its white space: anything but printable ASCII, blanks and line breaks,
# and an ampersand that could begin an entity. open_clip never finds an entity in "&" followed by white space.
_NEEDS_CARE = re.compile(r"[^\x20-\x7e\t\n\r]|&(?![ \t\n\r]|\Z)").search
# Python makes a number of no more than 4,300 digits, and no character has one as long.
_ENDLESS = re.compile(r"&#[0-9]{4000,};?")
_CONFIG = ftfy.TextFixerConfig(explain=False)


def clean(text: str) -> str:
    """Return `text` as open_clip's tokenizers clean it, case kept.

    Plain ASCII takes a path that skips ftfy and the HTML parser and gives the same text, about thirty times faster.
    """
    # What the first three say of most captions, the pattern would say at four times the cost.
    if (text.isascii() and text.isprintable() and "&" not in text) or _NEEDS_CARE(text) is None:
        return " ".join(text.split())
    return " ".join(_unescape(_unescape(ftfy.fix_text(text, _CONFIG))).split())


def _unescape(text: str) -> str:
    return html.unescape(_ENDLESS.sub("\ufffd", text))
