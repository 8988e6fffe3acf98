"""Keys of texts by the stems of their words: *red car* and *red cars* are one query, on one side of a split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import snowballstemmer

from paraclip_core.captions.keys import Keys, text_keys

_WORD = re.compile(r"\w+")


@lru_cache(1 << 17)
def _stem(word: str) -> str:
    return snowballstemmer.stemmer("english").stemWord(word)


def stems(text: str) -> str:
    """The sorted stems of a text's words (Porter 2, English; words of other languages lose some endings, too)."""
    return " ".join(sorted(_stem(word) for word in _WORD.findall(text.casefold()))) or text


def stem_keys(texts: Sequence[str], salt: str) -> Keys:
    """A 64-bit key of each text, uint64 [n], equal for texts that differ in word forms or order alone."""
    return text_keys([stems(text) for text in texts], salt)
