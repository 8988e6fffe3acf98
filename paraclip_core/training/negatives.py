"""Hard negatives: texts that are nearly a caption, and wrong of its image.

An image has to prefer its caption: the loss is the mean of -log(exp(s·v·c) / (exp(s·v·c) + exp(s·v·n))) for image v,
caption c, negative n and scale s, the softmax over the caption and one more text. Negatives are answers that were
paid for and stopped because they change a detail, and captions with a word replaced, or two swapped, by rules
(NegCLIP, arXiv 2210.01936, without its parser).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor
from torch.nn.functional import softplus

from paraclip_core.paraphrase.parse import STOP_WORDS
from paraclip_core.paraphrase.small_model.lexicon import COLORS, KINDS, NUMBERS, OPPOSITES

__all__ = ["NEGATIVE", "NEGATIVES", "POSITIVE", "TEACHING", "negative_loss", "rule_negative", "says_something_else"]

NEGATIVES, POSITIVE, NEGATIVE = "negatives", "positive", "negative"
"""The term, and its kinds of texts: a caption and what is nearly that."""
TEACHING = ("changed_number", "changed_colour", "changed_relation", "changed_negation")
"""Reasons of rejects that are wrong of the image."""

_WORD = re.compile(r"[^\W\d_]+")
_COLORS = ("red", "blue", "green", "yellow", "black", "white", "brown", "orange", "purple", "pink")
_PLURALS = frozenset(("men", "women", "gentlemen", "mice", "geese", "oxen", "cattle", "calves", "feet"))
_NUMBERS = ("two", "three", "four", "five", "six")
Edit = tuple[int, int, str]
"""Start and end in the text, and what stands there instead."""


def negative_loss(images: Tensor, captions: Tensor, negatives: Tensor, scale: Tensor) -> Tensor:
    """How far images are from preferring their captions to the negatives, a scalar in nats.

    Args:
        images: L2-normalized [n, d].
        captions: L2-normalized [n, d].
        negatives: L2-normalized [n, d].
        scale: factor of the cosines, a scalar.
    """
    return softplus(scale * (images * (negatives - captions)).sum(1)).mean()


def says_something_else(reason: str, detail: str) -> bool:
    """Whether a rejected answer is wrong of the image; one that only leaves a detail out is not."""
    return reason in TEACHING and not detail.startswith("lost ") and not detail.endswith(" is lost")


def rule_negative(caption: str) -> tuple[str, str] | None:
    """A kind of change and the caption with that change; None where no rule finds a word.

    The kinds: `swap_color`, `replace_color`, `replace_number`, `replace_opposite` and `replace_object`. Which one of
    those that apply is taken depends on the caption alone.
    """
    found = [(match.start(), match.end(), match.group().lower()) for match in _WORD.finditer(caption)]
    edits = [edit for edit in (_swapped_colors(found), *(_replaced(word) for word in found)) if edit is not None]
    if not edits:
        return None
    number = int.from_bytes(hashlib.blake2b(caption.encode("utf-8", "surrogatepass"), digest_size=8).digest())
    kinds = sorted({kind for kind, _ in edits})
    kind = kinds[number % len(kinds)]
    choices = [variants for name, variants in edits if name == kind]
    variants = choices[(number >> 16) % len(choices)]
    text = caption
    for start, end, word in sorted(variants[(number >> 32) % len(variants)], reverse=True):
        text = text[:start] + word + text[end:]
    return kind, text


def _swapped_colors(found: Sequence[tuple[int, int, str]]) -> tuple[str, list[list[Edit]]] | None:
    """Two colors change places, if something stands between them that has the first."""
    colors = [number for number, (_, _, word) in enumerate(found) if word in COLORS]
    pairs = []
    for one, two in pairwise(colors):
        between = [word for _, _, word in found[one + 1 : two]]
        if COLORS[found[one][2]] != COLORS[found[two][2]] and any(word not in STOP_WORDS for word in between):
            pairs.append([(*found[one][:2], found[two][2]), (*found[two][:2], found[one][2])])
    return ("swap_color", pairs) if pairs else None


def _replaced(word: tuple[int, int, str]) -> tuple[str, list[list[Edit]]] | None:
    start, end, text = word
    if text in COLORS:
        kind, others = "replace_color", [color for color in _COLORS if COLORS[color] != COLORS[text]]
    elif text in _NUMBERS:
        kind, others = "replace_number", [number for number in _NUMBERS if NUMBERS[number] != NUMBERS[text]]
    elif opposites := _opposites(text):
        kind, others = "replace_opposite", opposites
    elif text in KINDS:
        kind, others = "replace_object", _other_kinds(text)
    else:
        return None
    return (kind, [[(start, end, other)] for other in others]) if others else None


def _opposites(word: str) -> list[str]:
    for one, two in OPPOSITES:
        for side, other in ((one, two), (two, one)):
            if word in side:
                return sorted(other)
    return []


def _other_kinds(word: str) -> list[str]:
    """The plainest words for other things of the same sort, in the same number."""
    block = KINDS[word].partition("/")[0]
    by_kind: dict[str, list[str]] = {}
    for other, kind in KINDS.items():
        if kind.partition("/")[0] == block and kind != KINDS[word]:
            by_kind.setdefault(kind, []).append(other)
    return [other for words in by_kind.values() for other in words[:2] if _plural(other) == _plural(word)]


def _plural(word: str) -> bool:
    return word.endswith("s") or word in _PLURALS
