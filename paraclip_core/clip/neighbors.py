"""Near-duplicates among images, by the cosine of their stored features: each image is compared with all others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from paraclip_core.progress import Progress, silent
from paraclip_core.training.data import ImageFeatures

COSINES = 1 << 25
"""Cosines that are in memory at a time."""


@dataclass(frozen=True)
class Neighbors:
    """Near images of each of n images, the nearest first."""

    starts: NDArray[np.int64]
    """Where each image's neighbors begin, and the number of all, [n + 1]."""
    rows: NDArray[np.int32]
    """Numbers of the neighbors."""
    cosines: NDArray[np.float32]

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

    The time grows with the square of the images: of 512 dimensions, 100,000 take a minute of two CPU cores. Sums in
    another order (other devices and numbers of threads) may tell cosines apart that are equal in six digits.

    Args:
        features: of all images, float16 [N, d].
        rows: rows of `features` that are compared, [n]; the result counts them from 0.
        least: the lowest cosine.
        most: neighbors of an image, at most.
        device: where cosines are computed; it holds the features as float32.
        progress: told how many images are done.
    """
    n, count = len(rows), min(most, len(rows) - 1)
    starts, parts = [np.zeros(1, np.int64)], [(np.zeros(0, np.int32), np.zeros(0, np.float32))]
    if count < 1:
        return Neighbors(np.zeros(n + 1, np.int64), *parts[0])
    vectors = normalize(torch.from_numpy(np.asarray(features[rows])).to(device).float(), dim=1)
    block = max(1, COSINES // n)
    for start in range(0, n, block):
        cosines = vectors[start : start + block] @ vectors.T
        cosines.diagonal(start).fill_(-2)
        values, others = (part.cpu().numpy() for part in cosines.topk(count, dim=1))
        order = np.lexsort((others, -values), axis=1)
        values, others = (np.take_along_axis(part, order, axis=1) for part in (values, others))
        near = values >= least
        parts.append((others[near].astype(np.int32), values[near]))
        starts.append(starts[-1][-1] + np.cumsum(near.sum(axis=1)))
        progress(min(start + block, n), n)
    return Neighbors(np.concatenate(starts), *(np.concatenate(part) for part in zip(*parts, strict=True)))
