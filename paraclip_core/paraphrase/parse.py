"""From a raw answer to the paraphrase in it, beside what it was made from, and to the words that gates compare."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, wraps
from typing import TypeVar

from paraclip_core.captions.clean import clean

T = TypeVar("T")
Pieces = Callable[[str], int]
"""Number of CLIP tokens of a text, start and end token aside."""

_THOUGHTS_BEGIN, _THOUGHTS_END = (re.compile(tag, re.I) for tag in (r"<think(?:ing)?>", r"</think(?:ing)?>"))
_QUOTES = "\"'“”‘’«»„`*_"
_NUMBERING = re.compile(r"^(?:[-*•·–]|\(?\d{1,2}[.):])\s+")
# `*+`: white space that was passed is not given back, or a long run of it would be cut in every way into three.
_TEMPLATE = re.compile(
    r"<\s*+[|｜]?\s*+/?\s*+(?:im_start|im_end|endoftext|eot_id|end_of_turn|s)\s*+[|｜]?\s*+>.*$", re.S
)
_LABEL = re.compile(
    r"^(?:(?:the\s+|an?\s+|my\s+)?(?:concise\s+|possible\s+|rewritten\s+|new\s+|simple\s+)*"
    r"(?:paraphrase[ds]?|paraphrasing|paraphrased\s+\w+|rewrite|rewritten|rephrased?|caption|answer|output|response"
    r"|sentence|text|assistant|result|version)"
    r"(?:\s+(?:of|for)\s+(?:the|this)\s+(?:\w+\s+)?(?:caption|text|sentence))?(?:\s+(?:is|could\s+be|would\s+be))?)\s*:\s*",
    re.I,
)
_LEAD = re.compile(
    r"^(?:sure|certainly|of course|absolutely|okay|ok|here(?:'s| is| are)|(?:the|this) (?:original )?"
    r"(?:text|sentence|caption)(?: can be (?:paraphrased|rewritten|rephrased))?(?: as)?(?: is)?)\b[^:\n]{0,80}:\s*",
    re.I,
)
# Words with one blank between them: nothing of what follows could change such an answer, and most are of this kind.
_PLAIN = re.compile(r"[A-Za-z](?:[A-Za-z0-9]|[ '-](?=[A-Za-z0-9])|, (?=[A-Za-z0-9]))*[.!?]?").fullmatch
_SPACE_BEFORE_STOP = re.compile(r"\s+([.,;:!?])")


def parse_answer(raw: str | None) -> str:
    """The paraphrase: the first line that says something, without preamble, numbering, quotes and template tokens.

    A reasoning model's thoughts are dropped before. The result is cleaned as captions are, so that it is tokenized as
    it stands; it is empty where nothing is left. Never raises, whatever the text; parts that another program wrote may
    hold null, which says nothing.
    """
    if raw is None:
        return ""
    if _PLAIN(raw):
        return raw
    text = _TEMPLATE.sub("", _without_thoughts(raw))
    return next((answer for line in text.splitlines() if (answer := _parse_line(line))), "")


def _without_thoughts(raw: str) -> str:
    """What stands behind the last closing tag, as some chat templates open the thoughts themselves; or before any."""
    return _THOUGHTS_BEGIN.split(_THOUGHTS_END.split(raw)[-1])[0]


def _parse_line(line: str) -> str:
    text = " ".join(line.split())
    # Labels end in a colon, and most answers have none.
    for pattern in (_NUMBERING, _LEAD, _LABEL, _NUMBERING) if ":" in text else (_NUMBERING,):
        text = pattern.sub("", text, count=1)
    text = _unquote(text)
    return clean(_SPACE_BEFORE_STOP.sub(r"\1", text))


def _unquote(text: str) -> str:
    """Take off quotes that stand around the whole text, and a lone one at either end."""
    text = text.strip()
    if text[:1] and text[0] in _QUOTES:
        text = text.lstrip(_QUOTES)
        head = text.rstrip(_QUOTES + " ")
        return head.strip()
    if text[-1:] and text[-1] in '"“”*`' and text.count(text[-1]) == 1:
        return text[:-1].strip()
    return text


UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Letters of scripts without blanks, for a pattern's set: Thai to Khmer, Japanese, Chinese. Each is a word."""
# What hangs on a word says nothing about an image: a girl's, who's, they're. Denials stay: isn't.
_WORD = re.compile(rf"([{UNSPACED}]|[^\W_{UNSPACED}]+(?:'(?!(?:s|re|ll|ve|d|m)\b)[^\W_]+)?)(?:'(?:s|re|ll|ve|d|m)\b)?")


def word_set(text: str) -> frozenset[str]:
    """The words of a list that is written as one text."""
    return frozenset(text.split())


STOP_WORDS = word_set(
    """a an the this that these those some any each every all both other another such same own and or but nor so
    if as than then of in on at to from by for with without into onto upon over under above below up down out off
    near beside between behind through across along around against about after before during while until past
    toward towards inside outside within next close front back side top is are was were be been being am do does
    did has have had having will would can could may might must shall should it its they them their he him
    his she her hers we us our you your i my me who whom whose which what where when how there here not no very
    just also too only one beneath underneath atop among amongst amid alongside"""
)

NEGATIONS = word_set("no not without never none nobody nothing neither nor cannot")


@dataclass(frozen=True)
class Pair:
    """An answer with what it was made from."""

    caption: str
    """The caption at the root."""
    source: str
    """The text that was to be paraphrased: the caption at step 1, paraphrase 1 at step 2."""
    answer: str
    """The parsed answer."""
    step: int
    examples: Sequence[tuple[str, str]] = ()
    """The prompt's examples as (user, assistant)."""
    pieces: Pieces | None = None
    """Number of CLIP tokens of a text without start and end token; None: such gates pass."""
    context_length: int = 77

    @cached_property
    def caption_words(self) -> list[str]:
        """Words of the caption."""
        return words(self.caption)

    @cached_property
    def source_words(self) -> list[str]:
        """Words of the input."""
        return words(self.source)

    @cached_property
    def answer_words(self) -> list[str]:
        """Words of the answer."""
        return words(self.answer)

    @property
    def content_overlap(self) -> float:
        """Jaccard overlap of the stems of the content words: with the input by one third, with the caption by two.

        Articles and word forms are no novelty, and step 2 shall not go back to the caption's words.
        """
        in_answer = [stem(word) for word in content_words(self.answer_words)]
        with_source, with_caption = (
            jaccard([stem(word) for word in content_words(text_words)], in_answer)
            for text_words in (self.source_words, self.caption_words)
        )
        return (with_source + 2 * with_caption) / 3


def once_per_pair(function: Callable[[Pair], T]) -> Callable[[Pair], T]:
    """Compute a function of a pair once, however many gates ask for it."""

    @wraps(function)
    def remembered(pair: Pair) -> T:
        values = vars(pair)
        if function.__qualname__ not in values:
            values[function.__qualname__] = function(pair)
        return values[function.__qualname__]

    return remembered


def words(text: str) -> list[str]:
    """Lower-case words and numbers of a text, without punctuation and without the `'s` behind them.

    In scripts without blanks each letter is a word, so that lengths and overlaps can be told there, too.
    """
    return _WORD.findall(text.lower().replace("’", "'"))


@lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """A crude stem under which the forms of one English word meet (`jumping`, `jumps`, `jumped` → `jump`)."""
    for suffix, rest in (("ies", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", "")):
        if word.endswith(suffix) and not word.endswith("ss") and len(word) - len(suffix) >= 3:
            word = word[: -len(suffix)] + rest
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz":
        word = word[:-1]
    return word.rstrip("e") or word


def content_words(text_words: Sequence[str]) -> list[str]:
    """Those of the words that carry meaning; whether something is denied is asked of the whole text."""
    return [
        word
        for word in text_words
        if word not in STOP_WORDS and (len(word) > 1 or word >= UNSPACED[0]) and not denies(word)
    ]


def denies(word: str) -> bool:
    """Whether a word says that something is not so."""
    return word in NEGATIONS or word.endswith("n't")


def jaccard(one: Sequence[str], two: Sequence[str]) -> float:
    """|A ∩ B| / |A ∪ B| of two word lists taken as sets; 1 for two empty ones."""
    a, b = set(one), set(two)
    return len(a & b) / len(a | b) if a or b else 1.0
