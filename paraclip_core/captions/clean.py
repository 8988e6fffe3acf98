"""Cleaning of captions, as open_clip does before tokenizing.

The result equals ``whitespace_clean(basic_clean(text))``: ftfy fixes mojibake, curly quotes, ligatures, full-width
letters and line breaks, removes terminal escapes and control characters (NUL among them) and normalizes to NFC; HTML
entities are unescaped twice; runs of whitespace become one space. Tags and case are kept.

Cleaning twice is not the same as cleaning once (``&amp;amp;amp;lt;`` loses two levels each time), so a caption is
cleaned exactly once at ingest; a tokenizer of open_clip cleans its texts again, as it does a user's queries.
"""

from __future__ import annotations

import html
import re

import ftfy

# Matches what cleaning may change beyond whitespace: anything but printable ASCII, spaces and line breaks, and an
# ampersand that could begin an entity. open_clip never finds an entity in "&" followed by whitespace.
_NEEDS_CARE = re.compile(r"[^\x20-\x7e\t\n\r]|&(?![ \t\n\r]|\Z)").search
# Python converts at most 4,300 digits to a number, and no character reference needs that many.
_ENDLESS = re.compile(r"&#[0-9]{4000,};?")
_CONFIG = ftfy.TextFixerConfig(explain=False)


def clean(text: str) -> str:
    """Return `text` as open_clip's tokenizers clean it, case kept.

    Plain ASCII takes a path that skips ftfy and the HTML parser and gives the same text, about thirty times faster.
    """
    # The first three tests settle most captions; the pattern would take four times as long.
    if (text.isascii() and text.isprintable() and "&" not in text) or _NEEDS_CARE(text) is None:
        return " ".join(text.split())
    return " ".join(_unescape(_unescape(ftfy.fix_text(text, _CONFIG))).split())


def _unescape(text: str) -> str:
    return html.unescape(_ENDLESS.sub("\ufffd", text))
