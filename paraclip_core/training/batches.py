"""Which rows a step trains on: a pure function of (rows, batch size, seed, step)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paraclip_core.errors import TrainingError

__all__ = ["DataOrder", "epoch_order"]


def epoch_order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Permutation of the rows for one epoch, int64 [rows].

    Rows are sorted by the raw output of the counter-based Philox generator, which numpy keeps the same for ever
    (its ready-made shuffles it does not).
    """
    key = np.array([seed % 2**64, epoch], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(rows), kind="stable")


class DataOrder:
    """Batches of an endless run: every epoch is a new permutation, whose last incomplete batch is dropped."""

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        """Order `rows` rows; a batch is never larger than all rows.

        Raises:
            TrainingError: there are fewer than 2 rows, and so no negatives.
        """
        if rows < 2:
            raise TrainingError(
                f"{rows} training rows are too few: a contrastive loss needs at least 2; "
                "add captions, loosen the gates (paraphrase.gates) or lower finetune.validation"
            )
        self.rows, self.batch_size, self.seed = rows, min(batch_size, rows), seed
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
        return self._epoch[1][within * self.batch_size : (within + 1) * self.batch_size]
