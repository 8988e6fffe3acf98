"""From rows to what a step computes with: token lists that are encoded once each, image features, and keys of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from paraclip_core.clip.ragged import Ragged
from paraclip_core.errors import TrainingError
from paraclip_core.training.losses import IMAGE
from paraclip_core.training.rows import Batch, TrainingRows, token_keys

__all__ = ["ImageFeatures", "Prepared", "batches_ahead", "image_features", "prepare"]


class ImageFeatures(Protocol):
    """Stored image features: an array, or anything that gives rows of one."""

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.float16]: ...


@dataclass(frozen=True)
class Prepared:
    """A batch as arrays."""

    batch: Batch
    tokens: Ragged
    """The texts of every kind, one kind after the other; texts that kinds share come once."""
    parts: Mapping[str, slice]
    """Where each kind's n texts are among them."""
    features: NDArray[np.float32]
    """Stored features of the images, [n, d]."""
    keys: Mapping[str, NDArray[np.int64]] | None
    """For each kind and for ``image`` a key per row, [n]; equal keys mean equal texts or images. None: not wanted."""

    def embeddings(self, texts: Tensor) -> dict[str, Tensor]:
        """Embeddings of each kind and of ``image``, float32 [n, d], from those of all texts."""
        images = torch.from_numpy(self.features).to(texts.device)
        # Normalised again, because fp16 rounded them.
        return {IMAGE: functional.normalize(images, dim=-1)} | {kind: texts[part] for kind, part in self.parts.items()}

    def key_tensors(self, device: torch.device) -> dict[str, Tensor] | None:
        """The keys on a device."""
        if self.keys is None:
            return None
        return {kind: torch.from_numpy(values).to(device) for kind, values in self.keys.items()}


def prepare(batch: Batch, features: ImageFeatures, image_keys: NDArray[np.int64] | None) -> Prepared:
    """Look up what a step needs; without `image_keys` no keys are made.

    Raises:
        TrainingError: an image's features are not finite numbers.
    """
    unique = list({id(tokens): tokens for tokens in batch.texts.values()}.values())
    n = len(batch.image_rows)
    places = {id(tokens): slice(number * n, (number + 1) * n) for number, tokens in enumerate(unique)}
    tokens = Ragged.concatenate(unique)
    keys = None
    if image_keys is not None:
        by_text = token_keys(tokens)
        keys = {kind: by_text[places[id(texts)]] for kind, texts in batch.texts.items()}
        keys[IMAGE] = np.asarray(image_keys[batch.image_rows])
    parts = {kind: places[id(texts)] for kind, texts in batch.texts.items()}
    return Prepared(batch, tokens, parts, image_features(features, batch.image_rows), keys)


def image_features(features: ImageFeatures, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Stored features of these rows as float32 [n, d].

    Raises:
        TrainingError: one of them is not a finite number.
    """
    found = np.asarray(features[rows], np.float32)
    if not np.isfinite(found).all():
        row = rows[~np.isfinite(found).all(axis=1)][0]
        raise TrainingError(
            f"row {row} of the image features is not finite; delete the features artifact and run again"
        )
    return found


class _Order(Protocol):
    def batch(self, step: int) -> NDArray[np.int64]: ...


@contextmanager
def batches_ahead(
    rows: TrainingRows,
    order: _Order,
    kinds: tuple[str, ...],
    features: ImageFeatures,
    image_keys: NDArray[np.int64] | None,
    steps: range,
) -> Iterator[Iterator[Prepared]]:
    """The batches of these steps; each is made in a thread of its own while the one before it is trained on."""

    def make(step: int) -> Prepared:
        return prepare(rows.take(order.batch(step), kinds), features, image_keys)

    def batches() -> Iterator[Prepared]:
        coming: Future[Prepared] | None = None
        for step in steps:
            found = coming.result() if coming is not None else make(step)
            coming = pool.submit(partial(make, step + 1)) if step + 1 in steps else None
            yield found

    with ThreadPoolExecutor(1, "batches") as pool:
        yield batches()
