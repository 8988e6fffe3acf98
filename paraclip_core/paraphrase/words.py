"""The words of a text, and which of them carry meaning."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Letters of scripts without blanks, for a regex character set: Thai to Khmer, Japanese, Chinese. Each is a word."""
# A word's clitic says nothing about an image: a girl's, who's, they're. Negations stay: isn't.
_WORD = re.compile(rf"([{UNSPACED}]|[^\W_{UNSPACED}]+(?:'(?!(?:s|re|ll|ve|d|m)\b)[^\W_]+)?)(?:'(?:s|re|ll|ve|d|m)\b)?")


_STOPPED = """
    a an the this that these those some any each every all both other another such same own and or but nor so
    if as than then of in on at to from by for with without into onto upon over under above below up down out off
    near beside between behind through across along around against about after before during while until past
    toward towards inside outside within next close front back side top is are was were be been being am do does
    did has have had having will would can could may might must shall should it its they them their he him
    his she her hers we us our you your i my me who whom whose which what where when how there here not no very
    just also too only one beneath underneath atop among amongst amid alongside
    without never none nobody nothing neither cannot
"""
STOP_WORDS = frozenset(_STOPPED.split())


def words(text: str) -> list[str]:
    """Lower-case words and numbers of a text, without punctuation and a trailing `'s`.

    In scripts without blanks, each letter is a word, so that lengths and overlaps are meaningful there too.
    """
    return _WORD.findall(text.lower().replace("’", "'"))


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where the :func:`words` of a lower-case text begin and end."""
    return [match.span(1) for match in _WORD.finditer(text)]


@lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """A crude stem that the forms of one English word share (`jumping`, `jumps`, `jumped` → `jump`)."""
    for suffix, rest in (("ies", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", "")):
        if word.endswith(suffix) and not word.endswith("ss") and len(word) - len(suffix) >= 3:
            word = word[: -len(suffix)] + rest
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz":
        word = word[:-1]
    return word.rstrip("e") or word


def content_words(text_words: Sequence[str]) -> list[str]:
    """The words that carry meaning, without negations."""
    meant = [word for word in text_words if word not in STOP_WORDS and not word.endswith("n't")]
    return [word for word in meant if len(word) > 1 or word >= UNSPACED[0]]


def jaccard(first: Sequence[str], second: Sequence[str]) -> float:
    """|A ∩ B| / |A ∪ B| of two word lists taken as sets; 1 for two empty ones."""
    a, b = set(first), set(second)
    return len(a & b) / len(a | b) if a or b else 1.0
