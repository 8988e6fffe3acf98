"""What filters look at: an answer beside the texts that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from paraclip_core.paraphrase.words import content_words, jaccard, stem, words

Pieces = Callable[[str], int]
"""Number of CLIP tokens of a text, start and end token aside."""


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
    """Number of CLIP tokens of a text without start and end token; None: such filters pass."""
    context_length: int = 77

    @cached_property
    def caption_words(self) -> list[str]:
        return words(self.caption)

    @cached_property
    def source_words(self) -> list[str]:
        return words(self.source)

    @cached_property
    def answer_words(self) -> list[str]:
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
