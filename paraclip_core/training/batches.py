"""Batches: which rows a step trains on, and these as arrays.

A batch is a pure function of the rows, the batch size, the seed and the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from paraclip_core.clip.packed import Ragged
from paraclip_core.errors import TrainingError
from paraclip_core.training.data import Batch, TrainingRows
from paraclip_core.training.ranks import Gallery

IMAGE = "image"
"""The kind that is no text, beside caption, paraphrase_1 and paraphrase_2."""
DRAWS = 2**128
"""Where Philox's numbers for the draws begin, far behind those for the order."""


def epoch_order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Permutation of the rows for one epoch, int64 [rows].

    Rows are sorted by the raw output of the counter-based Philox generator, which numpy keeps stable (unlike its
    shuffles).
    """
    key = np.array([seed % 2**64, epoch], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(rows), kind="stable")


def draw(captions: NDArray[np.int64], rewrites: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Draw one of each caption's rewrites for an epoch, as LaCLIP does (arXiv 2305.20088).

    A draw depends on seed, epoch and the caption's number alone: it is that output of SplitMix64 (Steele et al., 2014),
    with a state that Philox gives for seed and epoch.

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
    """Batches of an endless run: every epoch is a new permutation without its last incomplete batch.

    An epoch has each caption once, in one of its rewrites.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, starts: NDArray[np.int64] | None = None) -> None:
        """Order `rows` captions; a batch is never larger than all of them.

        `starts` has the first row of each caption and the number of all rows; without it each caption is one row.
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
        """Number of steps of `epochs` passes over the rows, at least one."""
        return max(1, round(epochs * self.rows / self.batch_size))

    def batch(self, step: int) -> NDArray[np.int64]:
        """Rows of the batch at `step`, from 0; int64 [batch_size], whatever was asked for before."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, epoch_order(self.rows, self.seed, epoch))
        captions = self._epoch[1][within * self.batch_size : (within + 1) * self.batch_size]
        if self.starts is None:
            return captions
        first, after = (np.asarray(self.starts[captions + place]) for place in (0, 1))
        return first + draw(captions, after - first, self.seed, epoch)


class ImageFeatures(Protocol):
    """Stored image features: an array, or anything that gives rows of one."""

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.float16]: ...


@dataclass(frozen=True)
class Prepared:
    """A batch as arrays."""

    batch: Batch
    tokens: Ragged
    """The texts of every kind in a row; those that kinds share come once."""
    parts: Mapping[str, slice]
    """Each kind's n texts among them."""
    features: NDArray[np.float32]
    """Stored features of the images, [n, d]."""
    keys: Mapping[str, NDArray[np.int64]]
    """For each kind and ``image`` a key per row, [n]; equal keys mean equal texts or images."""
    ranked: NDArray[np.float32] | None = None
    """Stored features of the images that rankings are compared over, [m, d]; None: rankings are not trained."""

    def embeddings(self, texts: Tensor) -> dict[str, Tensor]:
        """Embeddings of each kind and of ``image``, float32 [n, d], from those of all texts."""
        return {IMAGE: _unit(self.features, texts.device)} | {kind: texts[part] for kind, part in self.parts.items()}

    def gallery(self, device: torch.device) -> Tensor:
        """Embeddings of the images that rankings are compared over, float32 [m, d]."""
        assert self.ranked is not None
        return _unit(self.ranked, device)

    def key_tensors(self, device: torch.device) -> dict[str, Tensor]:
        """The keys on a device."""
        return {kind: torch.from_numpy(values).to(device) for kind, values in self.keys.items()}


def _unit(features: NDArray[np.float32], device: torch.device) -> Tensor:
    # Normalized again, because fp16 rounded them.
    return functional.normalize(torch.from_numpy(features).to(device), dim=-1)


def prepare(
    batch: Batch,
    features: ImageFeatures,
    image_keys: NDArray[np.int64],
    gallery: NDArray[np.int64] | None = None,
) -> Prepared:
    """Look up a batch's features and keys; `gallery` has the feature rows of images to rank."""
    unique = list({id(tokens): tokens for tokens in batch.texts.values()}.values())
    n = len(batch.image_rows)
    places = {id(tokens): slice(number * n, (number + 1) * n) for number, tokens in enumerate(unique)}
    tokens = Ragged.concatenate(unique)
    by_text = token_keys(tokens)
    keys = {kind: by_text[places[id(texts)]] for kind, texts in batch.texts.items()}
    keys[IMAGE] = np.asarray(image_keys[batch.image_rows])
    parts = {kind: places[id(texts)] for kind, texts in batch.texts.items()}
    ranked = None if gallery is None else image_features(features, gallery)
    return Prepared(batch, tokens, parts, image_features(features, batch.image_rows), keys, ranked)


def image_features(features: ImageFeatures, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Stored features of these rows as float32 [n, d]."""
    vectors = np.asarray(features[rows], np.float32)
    if not np.isfinite(vectors).all():
        row = rows[~np.isfinite(vectors).all(axis=1)][0]
        raise TrainingError(
            f"row {row} of the image features is not finite; delete the features artifact and run again"
        )
    return vectors


def token_keys(tokens: Ragged) -> NDArray[np.int64]:
    """A 64-bit key for each list of tokens, int64 [n]: equal lists have equal keys.

    A multilinear hash, Σ weight[position] · (token + 1) mod 2⁶⁴ with fixed random weights. Texts with equal tokens
    (letter case, cut ends) have one key.
    """
    lengths = np.diff(tokens.offsets)
    if not len(tokens.values):
        return np.zeros(len(lengths), np.int64)
    positions = np.arange(len(tokens.values)) - np.repeat(tokens.offsets[:-1], lengths)
    weights = np.random.Philox(key=np.array([0, 0], np.uint64)).random_raw(int(lengths.max()))
    terms = (tokens.values.astype(np.uint64) + np.uint64(1)) * weights[positions]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    return (sums[tokens.offsets[1:]] - sums[tokens.offsets[:-1]]).view(np.int64)


@contextmanager
def prefetch_batches(
    rows: TrainingRows,
    order: DataOrder,
    kinds: tuple[str, ...],
    features: ImageFeatures,
    image_keys: NDArray[np.int64],
    steps: range,
    gallery: Gallery | None = None,
) -> Iterator[Iterator[Prepared]]:
    """The batches of these steps; a thread makes the next one while the caller trains on one."""

    def make(step: int) -> Prepared:
        batch = rows.take(order.batch(step), kinds)
        ranked = None if gallery is None else gallery(step, batch.image_rows)
        return prepare(batch, features, image_keys, ranked)

    def batches() -> Iterator[Prepared]:
        futures = (pool.submit(make, step) for step in steps)
        coming = next(futures, None)
        while coming is not None:
            batch, coming = coming.result(), next(futures, None)
            yield batch

    with ThreadPoolExecutor(1, "batches") as pool:
        yield batches()


def save_batch(path: Path, rows: TrainingRows, indices: NDArray[np.int64], batch: Batch) -> None:
    """Write a batch for inspection, as a NumPy archive.

    It holds ``caption_ids`` (lower-case hexadecimal, if they were collected), ``rows`` (numbers among the training
    rows), ``image_rows`` (rows of the feature matrix) and the tokens of each kind, ``<kind>_values`` and
    ``<kind>_offsets``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"caption_ids": np.array(rows.caption_ids(indices), str)}
    arrays |= {"rows": indices, "image_rows": batch.image_rows}
    for kind, tokens in batch.texts.items():
        arrays |= {f"{kind}_values": tokens.values, f"{kind}_offsets": tokens.offsets}
    np.savez(path, **arrays)
