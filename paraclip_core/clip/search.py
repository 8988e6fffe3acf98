"""Search for the images closest to a text or another image, by the cosine of stored features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.index import Gallery
from paraclip_core.clip.model import ClipModel
from paraclip_core.errors import InputError, ModelError

BLOCK = 65_536
"""Images whose features are in memory at once, if not all are."""
HELD_BYTES = 2 << 30
"""Default size up to which all features stay in memory, as float32."""
SHORTEST = 1e-12
"""Length below which a feature is not scaled to 1."""


class Searcher:
    """Ranks the images of one index by cosine, for many queries."""

    def __init__(self, features: Gallery, ids: Sequence[str], memory: int = HELD_BYTES) -> None:
        """Keep the features, [n, d] of any norm, in memory if they take at most `memory` bytes as float32.

        Otherwise they are read block by block in every search. A row that is not finite raises ModelError when read.
        """
        self._features = features
        self.ids = ids
        self._held: list[torch.Tensor] | None = None
        if features.shape[0] * features.shape[1] * 4 <= memory:
            self._held = [self._read(start) for start in self._starts()]

    @property
    def dimension(self) -> int:
        """Width of a feature."""
        return int(self._features.shape[1])

    def check(self, clip: ClipModel) -> None:
        """Check that the model has the same width."""
        if self.dimension != clip.embed_dim:
            raise ModelError(
                f"the features have {self.dimension} dimensions, but {clip.reference} has {clip.embed_dim}; "
                "they were made with another image encoder"
            )

    def nearest(self, vectors: NDArray[np.floating], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The `k` images with the largest inner product for each of the vectors, [q, d], best first, ties by row.

        Returns rows, int64 [q, min(k, n)], and their scores, float32.
        """
        queries = torch.from_numpy(np.ascontiguousarray(vectors, np.float32))
        values, rows = torch.zeros(len(queries), 0), torch.zeros(len(queries), 0, dtype=torch.int64)
        for number, start in enumerate(self._starts()):
            block = self._held[number] if self._held is not None else self._read(start)
            largest, places = best(queries @ block.T, k)
            # Ties keep their order: earlier blocks hold the lower rows.
            values, rows = torch.cat([values, largest], 1), torch.cat([rows, places + start], 1)
            values, order = torch.sort(values, dim=1, descending=True, stable=True)
            values, rows = values[:, :k], rows.gather(1, order[:, :k])
        return rows.numpy(), values.numpy()

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Unit features of some images, float32 [len(rows), d]."""
        return self._unit(rows).numpy()

    def _starts(self) -> range:
        return range(0, len(self._features), BLOCK)

    def _read(self, start: int) -> torch.Tensor:
        return self._unit(np.arange(start, min(start + BLOCK, len(self._features))))

    def _unit(self, rows: NDArray[np.int64]) -> torch.Tensor:
        features = torch.from_numpy(np.ascontiguousarray(self._features[rows])).float()
        norms = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        finite = torch.isfinite(norms[:, 0])
        if not finite.all():
            row = int(rows[int((~finite).nonzero()[0])])
            raise InputError(
                f"the features of image {self.ids[row]!r} (row {row}) are not finite; recompute them, or leave it out"
            )
        # After rounding to float16 the rows are not exactly of length 1.
        return features.div_(norms.clamp_min(SHORTEST))


def best(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and columns of the `k` largest of each row (all if fewer); of equal ones the lower column comes first."""
    # `topk` picks arbitrarily among values equal to the last one, and orders equal values arbitrarily.
    k, width = min(k, scores.shape[1]), scores.shape[1]
    values, columns = torch.topk(scores, min(k + 1, width), dim=1)
    tied = (values[:, k - 1] == values[:, -1]) & (k < width)
    columns, _ = torch.sort(columns[:, :k], dim=1)
    values, order = torch.sort(scores.gather(1, columns), dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    if tied.any():
        ranked, places = torch.sort(scores[tied], dim=1, descending=True, stable=True)
        values[tied], columns[tied] = ranked[:, :k], places[:, :k]
    return values, columns


def search(clip: ClipModel, searcher: Searcher, queries: Sequence[str], k: int = 10) -> list[list[tuple[str, float]]]:
    """Id and cosine of the `k` images nearest to each text, nearest first, ties by row."""
    searcher.check(clip)
    return nearest_to(searcher, encode_texts(clip, queries), k)


def nearest_to(searcher: Searcher, vectors: NDArray[np.floating], k: int = 10) -> list[list[tuple[str, float]]]:
    """The same for the vectors [q, d] of queries."""
    rows, scores = searcher.nearest(vectors, k)
    nearest: list[list[int]] = rows.tolist()
    return [
        [(searcher.ids[row], score) for row, score in zip(images, cosines, strict=True)]
        for images, cosines in zip(nearest, scores.tolist(), strict=True)
    ]
