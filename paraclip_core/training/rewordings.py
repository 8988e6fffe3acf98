"""Rewordings made by rule: a caption as people type it into a search field, in place of one of its paraphrases.

A language model writes whole sentences, and a small one repeats the caption's words. Each epoch draws one of the two
paraphrases of each caption, which gives way to one of two rewordings: the caption without its articles, or without all
words that carry no content (``two dogs in the snow`` becomes ``two dogs snow``). A caption without such a word keeps
its paraphrase, so other languages are left alone.

Rows store tokens, not texts, so the rules work on tokens. A rewording is a pure function of the seed, the epoch and the
caption, so that a resumed run makes the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paraclip_core.clip.ragged import Ragged
from paraclip_core.evaluation.benchmarks.query_pairs import ARTICLES, FUNCTION_WORDS
from paraclip_core.training.data import CAPTION, TEXTS, TrainingRows, random_numbers

REWORDING_DRAWS, PLACE_DRAWS = 2**131, 2**132
"""Offsets of Philox's numbers for rewordings and for what they replace, far beyond those for images."""
LEFT_OUT = (*FUNCTION_WORDS, ".", ",")


@dataclass(frozen=True)
class Fillers:
    """The words that rewordings leave out, as a model's tokenizer writes them."""

    articles: NDArray[np.int64]
    """The tokens of articles, at the beginning of a text and within, as far as they are single ones."""
    function_words: NDArray[np.int64]
    """The same of :data:`LEFT_OUT`."""
    special: int
    """Number of special tokens of a text."""


def fillers(tokenize: Callable[[Sequence[str]], Ragged]) -> Fillers:
    """Ask a tokenizer for the words that rewordings leave out."""
    special, opening = tokenize(["", "dog"]).lengths.tolist()
    empty, probe = tokenize([""]).values, tokenize(["dog"]).values
    begin = int(np.argmax(probe[:special] != empty)) if special and (probe[:special] != empty).any() else special

    def tokens(words: Sequence[str]) -> NDArray[np.int64]:
        texts = [form for word in words for form in (word, word.capitalize())]
        found = []
        for before, inside in (("", begin), ("dog ", begin + opening - special)):
            made = tokenize([before + text for text in texts])
            alone = made.lengths == inside - begin + special + 1
            found.append(np.asarray(made.values[(made.offsets[:-1] + inside)[alone]], np.int64))
        return np.unique(np.concatenate(found))

    return Fillers(tokens(ARTICLES), tokens(LEFT_OUT), special)


@dataclass(frozen=True)
class Rewordings:
    """Makes the rewordings of a training."""

    fillers: Fillers
    seed: int

    def in_batch(self, rows: TrainingRows, indices: NDArray[np.int64], epoch: int) -> dict[str, Ragged]:
        """The paraphrases of the rows at `indices`, one of both a rewording of its caption: n texts by kind."""
        captions, numbers, n = rows.texts[CAPTION].take(indices), rows.caption_numbers(indices), len(indices)
        reworded, changed = self.of(captions, numbers, epoch)
        (place,) = random_numbers(numbers, self.seed, epoch, PLACE_DRAWS)
        texts = {}
        for number, kind in enumerate(TEXTS[1:]):
            both = Ragged.concatenate([rows.texts[kind].take(indices), reworded])
            texts[kind] = both.take(np.arange(n) + n * (changed & (place % np.uint64(2) == number)))
        return texts

    def of(self, captions: Ragged, numbers: NDArray[np.int64], epoch: int) -> tuple[Ragged, NDArray[np.bool_]]:
        """A rewording of each caption, [n], and whether it differs from the caption, bool [n]; `numbers` are the
        captions' among all, int64 [n]."""
        (rule,) = random_numbers(numbers, self.seed, epoch, REWORDING_DRAWS)
        values, fillers = np.asarray(captions.values, np.int64), self.fillers
        text = np.repeat(np.arange(len(captions)), captions.lengths)
        keywords = (rule % np.uint64(2) == 1)[text]
        drop = np.isin(values, fillers.articles) | keywords & np.isin(values, fillers.function_words)
        dropped = np.bincount(text[drop], minlength=len(captions))
        changed = (dropped > 0) & (captions.lengths - dropped > fillers.special)
        keep = ~(drop & changed[text])
        lengths = np.bincount(text[keep], minlength=len(captions))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return Ragged(captions.values[keep], offsets), changed
