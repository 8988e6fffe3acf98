"""Leaves out training rows whose paraphrase the base puts further from the row's own image than the caption.

The gates of the paraphrase stages see texts only, because no base may exist when they run; here there is one, and the
stored image features. A row that is left out is written among the stage's rejects while the rows stream past.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.packed import Ragged
from paraclip_core.tables import PARAPHRASE_REJECTS
from paraclip_core.training.alpha import image_cosines
from paraclip_core.training.batches import image_features
from storage.parquet import PartWriter
from tasks.training.data import Images, RowTexts

__all__ = ["REASON", "ImageGate"]

REASON = "far_from_image"
BLOCK = 2048
# A caption that comes back unchanged in another rounding is no drop.
SLACK = 1e-9


class ImageGate:
    """Decides row by row and writes what it leaves out; memory holds a block of rows and one part of the rejects."""

    columns = ("caption_id", "caption", "paraphrase_1", "paraphrase_2", "generation_1", "generation_2")
    """What a reject tells of its row."""

    def __init__(self, clip: ClipModel, images: Images, margin: float, folder: Path) -> None:
        """Reject into `folder` what loses more than `margin` of the cosine; ask `clip` as it is at that moment."""
        self._clip, self._images, self._margin = clip, images, margin
        self._rejects = PartWriter(folder, PARAPHRASE_REJECTS)
        self.rejected = 0
        """Rows that were left out."""

    def __call__(self, rows: pa.RecordBatch, texts: RowTexts, image_rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows stay, bool [n].

        Args:
            rows: n rows with `columns`.
            texts: their tokens by kind.
            image_rows: their images' rows in the feature matrix, int64 [n].

        Raises:
            TrainingError: an image's features are not finite numbers.
        """
        parts = [
            self._judge(
                rows.slice(start, BLOCK),
                {kind: column.slice(start, BLOCK) for kind, column in texts.items()},
                image_rows[start : start + BLOCK],
            )
            for start in range(0, rows.num_rows, BLOCK)
        ]
        return np.concatenate([np.zeros(0, bool), *parts])

    def close(self) -> None:
        """Write what is left of the rejects."""
        self._rejects.close()

    def _judge(self, rows: pa.RecordBatch, texts: RowTexts, image_rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        features = image_features(self._images.matrix, image_rows)
        of_caption, first, second = (
            image_cosines(self._clip, Ragged.from_arrow(texts[kind]), features)
            for kind in ("caption", "paraphrase_1", "paraphrase_2")
        )
        # The reject names the paraphrase that is farther away.
        step, worse = np.where(second <= first, 2, 1), np.minimum(first, second)
        far = of_caption - worse > self._margin + SLACK
        if far.any():
            self._rejects.write(self._table(rows.filter(pa.array(far)), step[far], of_caption[far], worse[far]))
            self.rejected += int(far.sum())
        return ~far

    def _table(
        self,
        rows: pa.RecordBatch,
        steps: NDArray[np.int64],
        before: NDArray[np.float64],
        after: NDArray[np.float64],
    ) -> pa.RecordBatch:
        made: list[dict[str, Any]] = []
        for row, step, of_caption, of_answer in zip(rows.to_pylist(), steps.tolist(), before, after, strict=True):
            made.append(
                {
                    "caption_id": row["caption_id"],
                    "step": step,
                    "attempt": 0,
                    "reason": REASON,
                    "detail": f"cosine {of_answer:.3f} with its image, the caption has {of_caption:.3f}; at most "
                    f"{self._margin:g} less is wanted",
                    "input": row["caption"],
                    "answer": row[f"paraphrase_{step}"],
                    "generation": row[f"generation_{step}"],
                }
            )
        return pa.RecordBatch.from_pylist(made, schema=PARAPHRASE_REJECTS)
