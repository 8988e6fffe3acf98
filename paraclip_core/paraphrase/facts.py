"""What a paraphrasing model is worth: how many facts of a caption its paraphrases keep, and how far their words are.

A content word of the caption is kept if the paraphrase has a content word near it: the cosine of both words' token
embeddings, each in its own sentence, is at least 0.45. This is BERTScore's recall (Zhang et al. 2020, arXiv
1904.09675) with a threshold in place of the mean, over content words alone. The whole text's cosine does not see a
lost fact: *the black and brown dog* and *the dog* are near each other. NLI models, tried as a filter, call a text that
says less an entailment.

Calibrated on 400 rows whose lost facts were labeled by reading (docs/filters.md): MiniLM and English alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paraclip_core.paraphrase.filter_options import FilterOptions
from paraclip_core.paraphrase.filters import filters_of
from paraclip_core.paraphrase.sentence_encoder import SentenceEncoder
from paraclip_core.paraphrase.words import content_words, jaccard, words

KEPT = 0.45
"""Minimum cosine of a kept word."""
FEW = 0.78
"""Share of kept words below which a model drops facts: halfway between a 1.5 B model (0.68) and a large one (0.87)."""
NEAR = 0.6
"""Share of common words above which a model copies its input."""
SAMPLE = 100
"""Captions that suffice: both paraphrases of each show the share to within about three points."""


@dataclass(frozen=True)
class Facts:
    """Means over paraphrases, each of its caption."""

    kept: float
    """Share of a caption's content words that its paraphrase keeps."""
    common: float
    """Share of both texts' words that they have in common (Jaccard), between 0 and 1."""
    paraphrases: int

    @property
    def verdict(self) -> str:
        """In two words: *drops facts*, *copies words*, or *keeps facts*."""
        return "drops facts" if self.kept < FEW else "copies words" if self.common > NEAR else "keeps facts"

    def __str__(self) -> str:
        return (
            f"{self.verdict}: {self.kept:.0%} of the captions' content words kept, {self.common:.0%} of the words in "
            f"common ({self.paraphrases} paraphrases)"
        )


def facts_behind(filters: FilterOptions, pairs: Sequence[tuple[str, str]]) -> Facts | None:
    """The facts that accepted paraphrases keep.

    None without pairs, and if these filters do not use the encoder that was calibrated.
    """
    if not pairs or filters.encoder or not filters_of(filters).meaning:
        return None
    return facts_of(pairs, SentenceEncoder())


def facts_of(pairs: Sequence[tuple[str, str]], encoder: SentenceEncoder) -> Facts | None:
    """The facts that paraphrases keep, from pairs of caption and paraphrase; None if no caption has a content word."""
    shares = [
        (kept.mean(), jaccard(words(caption), words(paraphrase)))
        for (caption, paraphrase), kept in zip(pairs, kept_words(pairs, encoder), strict=True)
        if len(kept)
    ]
    if not shares:
        return None
    kept, common = np.mean(shares, axis=0)
    return Facts(round(float(kept), 3), round(float(common), 3), len(shares))


def kept_words(pairs: Sequence[tuple[str, str]], encoder: SentenceEncoder) -> list[NDArray[np.bool_]]:
    """Which content words of each caption its paraphrase keeps, bool [words]."""
    texts = sorted({text for pair in pairs for text in pair})
    vectors = {text: _of_content(found) for text, found in zip(texts, encoder.word_vectors(texts), strict=True)}
    return [_near(vectors[caption], vectors[paraphrase]) for caption, paraphrase in pairs]


def _of_content(found: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    return [found[word] for word in content_words(list(found))]


def _near(words_of_caption: list[NDArray[np.float32]], others: list[NDArray[np.float32]]) -> NDArray[np.bool_]:
    if not words_of_caption or not others:
        return np.zeros(len(words_of_caption), bool)
    return (np.stack(words_of_caption) @ np.stack(others).T).max(axis=1) >= KEPT
