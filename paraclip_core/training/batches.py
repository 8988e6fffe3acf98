"""Which rows a step trains on: a pure function of (captions and their rows, batch size, seed, step)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paraclip_core.errors import TrainingError

__all__ = ["DataOrder", "draw", "epoch_order"]

DRAWS = 2**128
"""Where Philox's numbers for the draws begin, far behind those for the order."""


def epoch_order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Permutation of the rows for one epoch, int64 [rows].

    Rows are sorted by the raw output of the counter-based Philox generator, which numpy keeps the same for ever
    (its ready-made shuffles it does not).
    """
    key = np.array([seed % 2**64, epoch], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(rows), kind="stable")


def draw(captions: NDArray[np.int64], rewrites: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Draw one of each caption's rewrites for an epoch, as LaCLIP does (arXiv 2305.20088).

    A draw depends on the seed, the epoch and the caption's number alone, and no other caption's has to be made: it is
    the output of that number of SplitMix64 (Steele et al., 2014), whose state Philox gives for the seed and the epoch.

    Args:
        captions: numbers of n captions.
        rewrites: how many rewrites each of them has, at least 1.
        seed: seed of the run.
        epoch: epoch, from 0.

    Returns:
        Numbers of rewrites, from 0, int64 [n].
    """
    key = np.array([seed % 2**64, epoch], np.uint64)
    state = np.uint64(np.random.Philox(counter=DRAWS, key=key).random_raw())
    mixed = state + (captions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ mixed >> np.uint64(31)) % rewrites.astype(np.uint64)).astype(np.int64)


class DataOrder:
    """Batches of an endless run: every epoch is a new permutation, whose last incomplete batch is dropped.

    An epoch sees each caption once, in one of its rewrites.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, starts: NDArray[np.int64] | None = None) -> None:
        """Order `rows` captions; a batch is never larger than all of them.

        `starts` has the first row of each caption and the number of all rows; without it each caption is one row.

        Raises:
            TrainingError: there are fewer than 2 rows, and so no negatives.
        """
        if rows < 2:
            raise TrainingError(
                f"{rows} training rows are too few: a contrastive loss needs at least 2; "
                "add captions, loosen the gates (paraphrase.gates) or lower finetune.validation"
            )
        self.rows, self.batch_size, self.seed, self.starts = rows, min(batch_size, rows), seed, starts
        self.steps_per_epoch = rows // self.batch_size
        self._epoch: tuple[int, NDArray[np.int64]] | None = None

    def steps(self, epochs: float) -> int:
        """Steps after which `epochs` times as many rows as there are have been seen, at least one."""
        return max(1, round(epochs * self.rows / self.batch_size))

    def batch(self, step: int) -> NDArray[np.int64]:
        """Rows of the batch at `step`, from 0; int64 [batch_size]. No earlier batch has to be looked at."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, epoch_order(self.rows, self.seed, epoch))
        captions = self._epoch[1][within * self.batch_size : (within + 1) * self.batch_size]
        if self.starts is None:
            return captions
        first, after = (np.asarray(self.starts[captions + place]) for place in (0, 1))
        return first + draw(captions, after - first, self.seed, epoch)
