"""Images that fit a text best, by stored features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.model import ClipModel
from paraclip_core.errors import ModelError

__all__ = ["search"]

BLOCK = 65_536
"""Images whose features are in memory at once."""


class Gallery(Protocol):
    """Image features, float16 [n, d]: an array, or anything that gives rows of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: NDArray[np.int64], /) -> np.ndarray: ...


def search(
    clip: ClipModel, gallery: Gallery, image_ids: Sequence[str], query: str, k: int = 10
) -> list[tuple[str, float]]:
    """The `k` images nearest to a text.

    Args:
        clip: the model; base and tuned ones share the features, for their image tower is the same.
        gallery: the images' features, read in blocks.
        image_ids: n ids, one for each row.
        query: the text.
        k: how many images, at most n.

    Returns:
        (image id, cosine in -1…1) with the nearest first; of equally near ones the earlier row comes first.

    Raises:
        ModelError: the features have another dimension than the model.
    """
    if gallery.shape[1] != clip.embed_dim:
        raise ModelError(
            f"the features have {gallery.shape[1]} dimensions, but {clip.reference} has {clip.embed_dim}; "
            "they were made with another image tower"
        )
    text = encode_texts(clip, [query])[0]
    count = len(gallery)
    blocks = [_cosines(gallery[np.arange(start, min(start + BLOCK, count))], text) for start in range(0, count, BLOCK)]
    scores = np.concatenate([np.zeros(0, np.float32), *blocks])
    nearest: list[int] = np.argsort(-scores, kind="stable")[:k].tolist()
    return [(image_ids[row], float(scores[row])) for row in nearest]


def _cosines(features: np.ndarray, text: np.ndarray) -> np.ndarray:
    rows = features.astype(np.float32)
    # Rounding to float16 left the rows not quite of length 1.
    return (rows @ text) / np.maximum(np.linalg.norm(rows, axis=1), 1e-12)
