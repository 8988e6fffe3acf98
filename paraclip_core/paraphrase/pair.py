"""An answer beside what it was made from, with what the gates look at in both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from paraclip_core.paraphrase.alignment import Alignment, align
from paraclip_core.paraphrase.lexicon import LIGHT_WORDS, content_words, family, joined, numeral, stem, words

__all__ = ["Pair", "Pieces", "jaccard"]

Pieces = Callable[[str], int]


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

    @cached_property
    def known_stems(self) -> frozenset[str]:
        """Stems of everything that input and caption say, also of two words written as one."""
        alone = {stem(word) for word in (*self.source_words, *self.caption_words)}
        return frozenset(alone | joined(self.source_words).keys() | joined(self.caption_words).keys())

    @cached_property
    def new_words(self) -> list[str]:
        """Content words of the answer that neither input nor caption holds in any form, each once; numbers aside."""
        found = dict.fromkeys(content_words(self.answer_words))
        return [word for word in found if stem(word) not in self.known_stems and numeral(word) is None]

    @cached_property
    def unknown_words(self) -> list[str]:
        """New words that no list knows as another word for something in input or caption."""
        known = {found for word in (*self.source_words, *self.caption_words) if (found := family(word))}
        return [word for word in self.new_words if word not in LIGHT_WORDS and family(word) not in known]

    @cached_property
    def alignment(self) -> Alignment:
        """The words in which caption and answer differ."""
        return align(self.caption, self.answer)

    @property
    def content_overlap(self) -> float:
        """Jaccard overlap of the stems of the content words: with the input by one third, with the caption by two.

        Articles and word forms are no novelty, and step 2 shall not go back to the caption's words.
        """
        said = [stem(word) for word in content_words(self.answer_words)]
        with_source, with_caption = (
            jaccard([stem(word) for word in content_words(told)], said)
            for told in (self.source_words, self.caption_words)
        )
        return (with_source + 2 * with_caption) / 3


def jaccard(one: Sequence[str], two: Sequence[str]) -> float:
    """|A ∩ B| / |A ∪ B| of two word lists taken as sets; 1 for two empty ones."""
    a, b = set(one), set(two)
    return len(a & b) / len(a | b) if a or b else 1.0
