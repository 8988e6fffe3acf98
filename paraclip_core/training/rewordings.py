"""Rewordings made by rule: a caption as people type it into a search field, in place of one of its paraphrases.

A language model writes whole sentences, and a small one repeats the caption's words. Each epoch draws one of the two
paraphrases of each caption, which gives way to one of two rewordings: the caption without its articles, or without all
words that carry no content (``two dogs in the snow`` becomes ``two dogs snow``). A caption without such a word keeps
its paraphrase, so other languages are left alone.

Rows store tokens, not texts, so the rules work on tokens. A rewording is a pure function of the seed, the epoch and the
caption, so that a resumed run makes the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paraclip_core.clip.ragged import Ragged
from paraclip_core.training.data import TEXTS, TrainingRows, random_numbers
from paraclip_core.training.hard_negatives import Ids, Vocabulary

REWORDING_DRAWS, PLACE_DRAWS = 2**131, 2**132
"""Offsets of Philox's numbers for rewordings and for what they replace, far beyond those for images."""


@dataclass(frozen=True)
class Rewordings:
    """Makes the rewordings of a training."""

    words: Vocabulary
    seed: int

    def in_batch(
        self, rows: TrainingRows, indices: Ids, captions: Ragged, numbers: Ids, epoch: int
    ) -> dict[str, Ragged]:
        """The paraphrases of the rows at `indices`, one of both a rewording of its caption: n texts by kind.

        `captions` are those of the rows, `numbers` theirs among all, int64 [n].
        """
        n = len(indices)
        reworded, changed = self.of(captions, numbers, epoch)
        (place,) = random_numbers(numbers, self.seed, epoch, PLACE_DRAWS)
        texts = {}
        for number, kind in enumerate(TEXTS[1:]):
            both = Ragged.concatenate([rows.texts[kind].take(indices), reworded])
            texts[kind] = both.take(np.arange(n) + n * (changed & (place % np.uint64(2) == number)))
        return texts

    def of(self, captions: Ragged, numbers: Ids, epoch: int) -> tuple[Ragged, NDArray[np.bool_]]:
        """A rewording of each caption, [n], and whether it differs from the caption, bool [n]; `numbers` are the
        captions' among all, int64 [n]."""
        (rule,) = random_numbers(numbers, self.seed, epoch, REWORDING_DRAWS)
        values, (articles, function_words) = np.asarray(captions.values, np.int64), self.words.left_out
        text = np.repeat(np.arange(len(captions)), captions.lengths)
        keywords = (rule % np.uint64(2) == 1)[text]
        drop = np.isin(values, articles) | keywords & np.isin(values, function_words)
        dropped = np.bincount(text[drop], minlength=len(captions))
        changed = (dropped > 0) & (captions.lengths - dropped > self.words.begin + self.words.end)
        keep = ~(drop & changed[text])
        lengths = np.bincount(text[keep], minlength=len(captions))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return Ragged(captions.values[keep], offsets), changed
