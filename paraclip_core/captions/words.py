"""How many words a caption has: what blanks separate, or an estimate where the script sets none."""

from __future__ import annotations

import regex

__all__ = ["count_words", "is_unspaced"]

EAST = r"\p{Han}\p{Hiragana}\p{Katakana}\N{KATAKANA-HIRAGANA PROLONGED SOUND MARK}"
SOUTH_EAST = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
EAST_LETTERS, SOUTH_EAST_LETTERS = 2, 4
"""Characters of a word, about."""

_RUN = regex.compile(f"([{EAST}]+)|[{SOUTH_EAST}]+")
_OTHER = regex.compile(r"\w+")


def is_unspaced(text: str) -> bool:
    """Whether a cleaned text has words that no blanks separate."""
    return not text.isascii() and _RUN.search(text) is not None


def count_words(text: str, unspaced: bool = False) -> int:
    """Words of a cleaned text: its blank-separated pieces.

    With `unspaced` a piece in a script without blanks counts as a word for every two Chinese or Japanese characters,
    or four letters of Thai, Lao, Khmer or Burmese, begun ones included.
    """
    if not unspaced or not is_unspaced(text):
        return text.count(" ") + 1
    return sum(_words_of(piece) for piece in text.split(" "))


def _words_of(piece: str) -> int:
    runs = list(_RUN.finditer(piece))
    if not runs:
        return 1
    lengths = [(len(run.group()), EAST_LETTERS if run.group(1) else SOUTH_EAST_LETTERS) for run in runs]
    return sum(-(-letters // word) for letters, word in lengths) + len(_OTHER.findall(_RUN.sub(" ", piece)))
