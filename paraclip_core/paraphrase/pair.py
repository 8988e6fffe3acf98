"""What filters examine: an answer and the texts that it came from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from paraclip_core.paraphrase.words import content_words, jaccard, stem, words


@dataclass(frozen=True)
class Pair:
    """An answer with the texts that it came from."""

    caption: str
    """The original caption."""
    source: str
    """The text to paraphrase: the caption at step 1, paraphrase 1 at step 2."""
    answer: str
    """The parsed answer."""
    step: int

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
        """Jaccard overlap of the stems of the content words: one third with the input, two thirds with the caption.

        New articles and word forms do not count as novel, and step 2 should not return to the caption's words.
        """
        in_answer = [stem(word) for word in content_words(self.answer_words)]
        with_source, with_caption = (
            jaccard([stem(word) for word in content_words(text_words)], in_answer)
            for text_words in (self.source_words, self.caption_words)
        )
        return (with_source + 2 * with_caption) / 3
