"""Filters for single captions: is it text, and does it have neither too few nor too many words?"""

from __future__ import annotations

import regex

from paraclip_core.captions.clean import clean
from paraclip_core.captions.options import DataOptions
from paraclip_core.captions.rows import Problem

EAST = r"\p{Han}\p{Hiragana}\p{Katakana}\N{KATAKANA-HIRAGANA PROLONGED SOUND MARK}"
SOUTH_EAST = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
EAST_LETTERS, SOUTH_EAST_LETTERS = 2, 4
"""Approximate characters per word."""
MOST_CHARACTERS = 2000

_RUN = regex.compile(f"([{EAST}]+)|[{SOUTH_EAST}]+")
_OTHER = regex.compile(r"\w+")


def cleaned(raw: str, options: DataOptions) -> tuple[str, Problem | None]:
    """The cleaned caption, and the problem for which a filter rejects it, or None if it passes."""
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
    """Words of a cleaned text: its space-separated pieces.

    A piece in a script without spaces counts as one word per two Chinese or Japanese characters, or per four letters
    of Thai, Lao, Khmer or Burmese, rounded up.
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
