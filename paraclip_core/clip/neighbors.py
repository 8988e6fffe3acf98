"""Near-duplicates among images, by the cosine of their stored features.

Few images are compared with all others. Many are put into cells first: some images, drawn by chance, are centers, and
each image belongs to the cells of its nearest centers. Images are compared within a cell, as an inverted file index
does it (IVF, Sivic and Zisserman 2003). Near-duplicates have nearly the same nearest centers, so they share a cell.
Features are read cell by cell; memory holds the centers, one cell, and the pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from paraclip_core.progress import Progress, silent
from paraclip_core.training.data import ImageFeatures

ALL_PAIRS = 32_768
"""So many images are compared each with each."""
CELL_ROWS = 2048
"""Images for each center."""
CELLS = 3
"""Cells of an image, those of its nearest centers."""
BLOCK = 1024
"""Rows of a cosine matrix that are in memory at a time."""
SEED = 20_240_223


@dataclass(frozen=True)
class Neighbors:
    """Near images of each of n images, the nearest first."""

    starts: NDArray[np.int64]
    """Where each image's neighbors begin, and the number of all, [n + 1]."""
    rows: NDArray[np.int32]
    """Numbers of the neighbors."""
    cosines: NDArray[np.float32]

    def of(self, image: int) -> NDArray[np.int32]:
        """The neighbors of one image."""
        return self.rows[self.starts[image] : self.starts[image + 1]]

    def at_least(self, cosine: float) -> Neighbors:
        """Those of this cosine or a higher one."""
        near = self.cosines >= cosine
        counts = np.concatenate([np.zeros(1, np.int64), np.cumsum(near, dtype=np.int64)])
        return Neighbors(counts[self.starts], self.rows[near], self.cosines[near])

    def first(self) -> NDArray[np.int32]:
        """The image of each pair whose neighbor is in `rows`."""
        return np.repeat(np.arange(len(self.starts) - 1, dtype=np.int32), np.diff(self.starts))


def near_images(
    features: ImageFeatures,
    rows: NDArray[np.int64],
    least: float,
    most: int,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Neighbors:
    """The nearest images of each image, at most `most`, with a cosine of at least `least`.

    With more than 32,768 images some neighbors are missed, the fewer the nearer they are. Sums in another order (other
    devices and numbers of threads) may tell cosines apart that are equal in six digits.

    Args:
        features: of all images, float16 [N, d].
        rows: rows of `features` that are compared, [n]; the result counts them from 0.
        least: the lowest cosine.
        most: neighbors of an image, at most.
        device: where cosines are computed.
        progress: told how many cells are done.
    """
    cells = _cells(features, rows, torch.device(device))
    order, bounds = _members(cells)
    pairs: list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]] = []
    for cell, (start, stop) in enumerate(pairwise(bounds)):
        members = order[start:stop]
        vectors = _unit(features, rows[members], torch.device(device))
        for block, others, cosines in _within(vectors, least, most):
            one, other = members[block], members[others]
            once = _first_common(cells, one, other) == cell
            pairs.append((one[once], other[once], cosines[once]))
        progress(cell + 1, len(bounds) - 1)
    one = np.concatenate([np.zeros(0, np.int32), *(pair[0] for pair in pairs)])
    other = np.concatenate([np.zeros(0, np.int32), *(pair[1] for pair in pairs)])
    cosine = np.concatenate([np.zeros(0, np.float32), *(pair[2] for pair in pairs)])
    return _nearest(one, other, cosine, len(rows), most)


def _unit(features: ImageFeatures, rows: NDArray[np.int64], device: torch.device) -> Tensor:
    vectors = torch.from_numpy(np.asarray(features[rows])).to(device).float()
    return functional.normalize(vectors, dim=1)


def _cells(features: ImageFeatures, rows: NDArray[np.int64], device: torch.device) -> NDArray[np.int32]:
    """Numbers of each image's cells, [n, k], ascending."""
    if len(rows) <= ALL_PAIRS:
        return np.zeros((len(rows), 1), np.int32)
    chosen = np.random.default_rng(SEED).choice(len(rows), len(rows) // CELL_ROWS, replace=False)
    centers = _unit(features, rows[np.sort(chosen)], device)
    cells = np.empty((len(rows), CELLS), np.int32)
    for start in range(0, len(rows), BLOCK):
        cosines = _unit(features, rows[start : start + BLOCK], device) @ centers.T
        cells[start : start + BLOCK] = cosines.topk(CELLS, dim=1).indices.sort(dim=1).values.cpu().numpy()
    return cells


def _members(cells: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Images cell by cell, and where each cell begins, and the end."""
    flat, per_image = cells.reshape(-1), cells.shape[1]
    order = np.argsort(flat, kind="stable")
    bounds = np.searchsorted(flat[order], np.arange(int(flat.max(initial=0)) + 2))
    return (order // per_image).astype(np.int32), bounds


def _within(
    vectors: Tensor, least: float, most: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
    """The nearest ones of each vector among all of them: its number, the other's, and their cosine."""
    count = min(most, len(vectors) - 1)
    for start in range(0, len(vectors), BLOCK) if count > 0 else ():
        cosines = vectors[start : start + BLOCK] @ vectors.T
        cosines.diagonal(start).fill_(-2)
        values, others = cosines.topk(count, dim=1)
        near = values >= least
        block = start + near.nonzero()[:, 0]
        yield block.cpu().numpy(), others[near].cpu().numpy(), values[near].cpu().numpy()


def _first_common(cells: NDArray[np.int32], one: NDArray[np.int32], other: NDArray[np.int32]) -> NDArray[np.int32]:
    """The lowest cell that both images belong to: a pair that shares several counts in that one alone."""
    shared = cells[one][:, :, None] == cells[other][:, None, :]
    return np.where(shared.any(axis=2), cells[one], np.iinfo(np.int32).max).min(axis=1)


def _nearest(
    one: NDArray[np.int32], other: NDArray[np.int32], cosine: NDArray[np.float32], images: int, most: int
) -> Neighbors:
    order = np.lexsort((other, -cosine, one))
    one = one[order]
    starts = np.searchsorted(one, np.arange(images + 1))
    place = np.arange(len(one)) - starts[one]
    near = order[place < most]
    counts = np.minimum(np.diff(starts), most)
    return Neighbors(np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]), other[near], cosine[near])
