"""Gates: each looks at one answer and says nothing, or why it is not good enough, with a figure.

A gate is a function `(Pair, GateOptions) -> str | None`; its reason code is its name in :data:`TEXT_GATES`. The
gates that need sentence embeddings or counts over many answers are applied in :mod:`paraclip_core.paraphrase.choose`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable

from paraclip_core.config import GateOptions
from paraclip_core.paraphrase.details import (
    changed_colour,
    changed_compound,
    changed_kind,
    changed_negation,
    changed_number,
    changed_relation,
)
from paraclip_core.paraphrase.lexicon import content_words, stem, words
from paraclip_core.paraphrase.pair import Pair, jaccard

__all__ = ["REASONS", "TEXT_GATES", "first_failure"]

Gate = Callable[[Pair, GateOptions], str | None]

_REFUSAL = re.compile(
    r"\b(?:i(?:['’]m| am) (?:sorry|unable|not able)|i (?:cannot|can['’]t|can not|apologi[sz]e)|as an ai\b"
    r"|language model|i don['’]t have|please provide|unfortunately,? i)\b",
    re.I,
)
_PREAMBLE = re.compile(
    r"\b(?:paraphras\w*|rephras\w*|rewrit\w*|rewritten|the (?:original|given|following|above) (?:text|sentence|caption)"
    r"|in other words|this (?:sentence|caption|text|image) (?:is|shows|describes)|synonyms?)\b|=>|:$",
    re.I,
)
_MARKUP = re.compile(r"</?[a-z!]|https?:|www\.|\{|\}|\||\\|<|>|\.(?:jpe?g|png|gif|html?|php)\b", re.I)
# What chat templates of any family begin and end turns with; no sentence about an image holds it.
_TEMPLATE = re.compile(r"<[|/]?[a-z_|]|\[/?[A-Z_]{3,}\]|<<|\|>")
# `a three-year-old` and `a two-story house` are well said.
_ARTICLE = re.compile(
    r"\ba (?:(?:two|three|four|five|six|seven|eight|nine|ten)\b(?!-| year)"
    r"|(?:people|children|men|women|houses|cattle)\b)",
    re.I,
)


def empty(pair: Pair, options: GateOptions) -> str | None:
    """The answer holds no word."""
    return None if pair.answer_words else "no word in the answer"


def refusal_or_preamble(pair: Pair, options: GateOptions) -> str | None:
    """The answer speaks about the task instead of doing it."""
    for pattern in (_REFUSAL, _PREAMBLE):
        found = pattern.search(pair.answer)
        if found and found.group().lower() not in pair.source.lower():
            return f"says {found.group()!r}"
    return None


def copied_instruction(pair: Pair, options: GateOptions) -> str | None:
    """Words leaked from the prompt's examples.

    A word of an example is fine where the input shares a content word with that example's own input (`kids` →
    `children`), and a leak where nothing in the input calls for it.
    """
    if not pair.examples:
        return None
    leaked = []
    for word in pair.new_words:
        owners = [user for user, answer in pair.examples if word in _vocabulary(user) or word in _vocabulary(answer)]
        if owners and not any(pair.known_stems & _vocabulary_stems(user) for user in owners):
            leaked.append(word)
    return f"only the prompt's examples say {', '.join(leaked[:3])}" if leaked else None


def echo(pair: Pair, options: GateOptions) -> str | None:
    """The answer is the input again, or at step 2 the caption."""
    if pair.answer_words == pair.source_words:
        return "repeats its input"
    if pair.step == 2 and pair.answer_words == pair.caption_words:
        return "repeats the caption"
    return None


def character_set(pair: Pair, options: GateOptions) -> str | None:
    """The answer holds a chat template's token, or markup, control characters or a script that its input does not."""
    if found := _TEMPLATE.search(pair.answer):
        return f"template token {found.group()!r}"
    found = _MARKUP.search(pair.answer)
    if found and found.group().lower() not in pair.source.lower():
        return f"markup {found.group()!r}"
    for char in pair.answer:
        if not char.isascii() and not char.isspace() and char not in pair.source and not _latin(char):
            return f"character U+{ord(char):04X}"
    return None


def length_ratio(pair: Pair, options: GateOptions) -> str | None:
    """The answer is much shorter or longer than its input, in words."""
    found, base = len(pair.answer_words), len(pair.source_words)
    if found < options.min_length_ratio * base:
        return f"{found} words for {base}, at least {options.min_length_ratio:g} times as many are wanted"
    if found > options.max_length_ratio * base + 1:
        return f"{found} words for {base}, at most {options.max_length_ratio:g} times as many and one are wanted"
    return None


def too_long(pair: Pair, options: GateOptions) -> str | None:
    """The answer does not fit into the text tower's context."""
    room = pair.context_length - 2
    # A token covers at least one byte, so most answers need no count.
    if pair.pieces is None or len(pair.answer.encode("utf-8", "surrogatepass")) <= room:
        return None
    found = pair.pieces(pair.answer)
    return f"{found} tokens, {room} fit" if found > room else None


def repetition(pair: Pair, options: GateOptions) -> str | None:
    """A content word comes more often than in the input."""
    before = Counter(stem(word) for word in content_words(pair.source_words))
    for word, count in Counter(stem(word) for word in content_words(pair.answer_words)).items():
        if count > max(1, before[word]):
            return f"{word!r} {count} times"
    return None


def broken_words(pair: Pair, options: GateOptions) -> str | None:
    """A new word is none that CLIP's vocabulary knows whole, or an article stands before a plural."""
    found = _ARTICLE.search(pair.answer)
    if found and found.group().lower() not in pair.source.lower():
        return f"{found.group()!r}"
    if pair.pieces is not None:
        for word in pair.new_words:
            if pair.pieces(word) > 1 and pair.pieces(stem(word)) > 1:
                return f"{word!r} is no common word"
    return None


def high_overlap(pair: Pair, options: GateOptions) -> str | None:
    """Nearly the same words as the input."""
    found = jaccard(pair.answer_words, pair.source_words)
    return f"word overlap {found:.2f}, at most {options.max_overlap:g}" if found > options.max_overlap else None


def too_many_new_words(pair: Pair, options: GateOptions) -> str | None:
    """More content words that the input lacks than a rewording needs; words for a known kind do not count."""
    new = pair.unknown_words
    if len(new) <= options.max_new_content_words:
        return None
    return f"{len(new)} new words ({', '.join(new[:4])}), at most {options.max_new_content_words}"


TEXT_GATES: dict[str, Gate] = {
    gate.__name__: gate
    for gate in (
        empty, refusal_or_preamble, copied_instruction, character_set, length_ratio, too_long, echo, repetition,
        broken_words, changed_negation, changed_number, changed_colour, changed_kind, changed_relation,
        changed_compound, too_many_new_words, high_overlap,
    )
}  # fmt: skip
"""Gates that need the texts only, in the order in which they are asked."""

REASONS = (
    *TEXT_GATES,
    "low_similarity",
    "low_caption_similarity",
    "invented_word",
    "lost_word",
    "repeated_flood",
    "no_paraphrase",
)
"""Every reason code."""


def first_failure(pair: Pair, options: GateOptions) -> tuple[str, str] | None:
    """Reason code and detail of the first text gate that the answer fails; preset `paper` asks only for a word."""
    gates = {"empty": empty} if options.preset == "paper" else TEXT_GATES
    for reason, gate in gates.items():
        detail = gate(pair, options)
        if detail is not None:
            return reason, detail
    return None


def _vocabulary(text: str) -> frozenset[str]:
    return frozenset(content_words(words(text)))


def _vocabulary_stems(text: str) -> frozenset[str]:
    return frozenset(stem(word) for word in _vocabulary(text))


def _latin(char: str) -> bool:
    return unicodedata.name(char, "").startswith("LATIN") or unicodedata.category(char) in ("Pd", "Pi", "Pf", "Po")
