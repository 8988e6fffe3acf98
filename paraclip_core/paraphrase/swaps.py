"""Further answers beside the model's own: sentences in which synonyms stand for single words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paraclip_core.paraphrase.lexicon import stem, words
from paraclip_core.paraphrase.parse import parse_answer
from paraclip_core.paraphrase.prompts import bare
from paraclip_core.paraphrase.synonyms import Synonyms, swapped

__all__ = ["Answers", "with_swaps"]

SWAPS = {1: 1, 2: 3}
"""Words that are swapped for synonyms, at most, by step."""

BASES = {1: 2, 2: 3}
"""Texts that words are swapped in, for one request, by step."""

Answers = dict[str, tuple[bytes, Sequence[str]]]
"""Text → key of its request and the raw answers."""


def with_swaps(answers: Answers, captions: Mapping[str, str], step: int, synonyms: Synonyms) -> Answers:
    """Every text's answers and, behind them, answers (at step 2 the text, too) with single words swapped.

    Args:
        answers: of the model.
        captions: the (first) caption of each text; step 2 first tries to leave step 1's new words as they are.
        step: 1 or 2.
        synonyms: finds the words.
    """
    bases = {text: _bases(text, captions[text], found, step) for text, (_, found) in answers.items()}
    table = synonyms.table(base for some in bases.values() for base in some)
    extended: Answers = {}
    for text, (key, found) in answers.items():
        most = SWAPS[step]
        fresh = swapped(bases[text], _told(table, captions[text]), most) if step == 2 else []
        extended[text] = key, [*found, *dict.fromkeys([*fresh, *swapped(bases[text], table, most)])]
    return extended


def _bases(text: str, caption: str, answers: Sequence[str], step: int) -> list[str]:
    """Texts that words are swapped in: the input and the caption, which lost nothing yet, and the first answers."""
    found = [parsed for answer in answers if (parsed := parse_answer(answer))]
    bases: dict[str, None] = dict.fromkeys([*([text] if step == 2 else []), bare(caption), *found])
    return list(bases)[: BASES[step]]


def _told(table: Mapping[str, tuple[str, ...]], caption: str) -> dict[str, tuple[str, ...]]:
    """The part of the table for words that the caption holds."""
    known = {stem(word) for word in words(caption)}
    return {word: others for word, others in table.items() if stem(word) in known}
