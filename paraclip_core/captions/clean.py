"""A caption's text: cleaned as open_clip does, and whether its words are too few or too many.

Cleaning is equal to ``whitespace_clean(basic_clean(text))``: ftfy fixes mojibake, curly quotes, ligatures, full-width
letters and line breaks, removes terminal escapes and control characters (NUL among them) and normalizes to NFC; HTML
entities are unescaped twice; runs of white space become one blank. Tags stay, and so does case.

Cleaning twice is not the same as cleaning once (``&amp;amp;amp;lt;`` loses two levels each time), so a caption is
cleaned exactly once, at ingest, and the tokenizer takes it as it is.
"""

from __future__ import annotations

import html
import re

import ftfy
import regex

from paraclip_core.captions.options import DataOptions

EAST = r"\p{Han}\p{Hiragana}\p{Katakana}\N{KATAKANA-HIRAGANA PROLONGED SOUND MARK}"
SOUTH_EAST = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
EAST_LETTERS, SOUTH_EAST_LETTERS = 2, 4
"""Characters of a word, about."""
MOST_CHARACTERS = 2000

_RUN = regex.compile(f"([{EAST}]+)|[{SOUTH_EAST}]+")
_OTHER = regex.compile(r"\w+")
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


def cleaned(raw: str, options: DataOptions) -> tuple[str, tuple[str, str] | None]:
    """The cleaned caption, and reason and detail where a filter that looks at one caption alone stops it."""
    if len(raw) > MOST_CHARACTERS:
        return "", ("too_long", f"{len(raw)} characters, at most {MOST_CHARACTERS}")
    text = clean(raw)
    if not text:
        return text, ("empty", "nothing is left after cleaning")
    if (count := count_words(text)) < options.min_words:
        return text, ("too_few_words", f"{count} words, at least {options.min_words} (data.min_words)")
    if count > options.max_words:
        return text, ("too_many_words", f"{count} words, at most {options.max_words} (data.max_words)")
    return text, None


def count_words(text: str) -> int:
    """Words of a cleaned text: its blank-separated pieces.

    A piece in a script without blanks counts as a word for every two Chinese or Japanese characters, or four letters of
    Thai, Lao, Khmer or Burmese, begun ones included.
    """
    if text.isascii() or _RUN.search(text) is None:
        return text.count(" ") + 1
    return sum(_words_of(piece) for piece in text.split(" "))


def _words_of(piece: str) -> int:
    runs = list(_RUN.finditer(piece))
    if not runs:
        return 1
    lengths = [(len(run.group()), EAST_LETTERS if run.group(1) else SOUTH_EAST_LETTERS) for run in runs]
    return sum(-(-letters // word) for letters, word in lengths) + len(_OTHER.findall(_RUN.sub(" ", piece)))
