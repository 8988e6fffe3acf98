"""Training data: rows on disk, their order, and batches as arrays.

Token lists and image rows are stored in memory-mapped flat files, so resident memory does not grow with the number of
rows. A caption has one row per paraphrase pair, and these rows are consecutive. A batch is a pure function of the
rows, the batch size, the seed and the step.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from paraclip_core.clip.index import Gallery
from paraclip_core.clip.ragged import Ragged

IMAGE = "image"
"""The kind that is not a text, in addition to the three of `TEXTS`."""
CAPTION = "caption"
TEXTS = (CAPTION, "paraphrase_1", "paraphrase_2")
"""The texts of a row."""
HARD_NEGATIVE = "hard_negative"
"""The text of a row that is made for a batch, see :mod:`paraclip_core.training.hard_negatives`."""

DONE = "rows.json"
CAPTION_ID = "caption_id"
STARTS = "starts"
ID_BYTES = 16
PARAPHRASE_DRAWS = 2**128
"""Offset of Philox's numbers for paraphrases, far beyond those for the order."""
IMAGE_DRAWS = 2**130
"""Offset of Philox's numbers for images that are drawn from an index."""
IMAGE_ROWS = "image_rows"
RowBatch = Mapping[str, Any]
"""Columns of some rows: token lists by kind, the caption ids, binary(16), under ``caption_id`` and, for captions of
images, the row of each image in the feature matrix, int64 [n], under ``image_rows``."""


@dataclass(frozen=True)
class TrainingRows:
    """The texts to train on, by kind."""

    texts: Mapping[str, Ragged]
    facts: Mapping[str, int] = field(default_factory=dict)
    """Counts from collecting the rows."""
    ids: NDArray[np.uint8] | None = None
    """Each row's caption id, [n, 16]."""
    starts: NDArray[np.int64] | None = None
    """The first row of each caption, then the number of rows, [captions + 1]; None if each caption has one row."""

    def __len__(self) -> int:
        """Number of captions, of which an epoch sees one row each."""
        return self.total if self.starts is None else len(self.starts) - 1

    @property
    def total(self) -> int:
        """Number of rows, of which a caption has one for each of its paraphrases."""
        return len(next(iter(self.texts.values())))

    def caption_numbers(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of the caption that each of these rows is of, from 0, int64 [n]."""
        return indices if self.starts is None else np.searchsorted(self.starts, indices, "right") - 1

    @property
    def paraphrased(self) -> bool:
        """Whether they have paraphrases; those of the caption-only control have none."""
        return self.texts[TEXTS[1]] is not self.texts[CAPTION]

    def as_captions(self) -> TrainingRows:
        """The rows of the caption-only control: every text is the caption."""
        return replace(self, texts=dict.fromkeys(TEXTS, self.texts[CAPTION]))


def data_digest(rows: TrainingRows, images: TrainingImages) -> str:
    """Digest of the images and captions in order, and of the number of tokens of each kind of text.

    The tokens themselves are most of the data and are not read.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{len(rows)} {[(kind, len(tokens.values)) for kind, tokens in rows.texts.items()]};".encode())
    for part in (*images.identity, rows.ids, rows.starts):
        digest.update(f"{None if part is None else part.shape};".encode())
        if part is not None:
            digest.update(np.ascontiguousarray(part).reshape(-1).data)
    return digest.hexdigest()


class CaptionStarts:
    """Finds the first row of each caption in a stream, in which the rows of a caption are consecutive."""

    def __init__(self) -> None:
        self._last: NDArray[np.uint8] | None = None

    def __call__(self, ids: pa.FixedSizeBinaryArray) -> NDArray[np.bool_]:
        """Which of the next rows begin a new caption, bool [n]."""
        values = id_array(ids)
        begins = np.ones(len(values), bool)
        begins[1:] = (values[1:] != values[:-1]).any(axis=1)
        if len(values):
            if self._last is not None:
                begins[0] = (values[0] != self._last).any()
            self._last = values[-1].copy()
        return begins


def id_array(ids: pa.FixedSizeBinaryArray) -> NDArray[np.uint8]:
    """Caption ids as numbers, uint8 [n, 16]: a view of the buffer instead of a Python object per row."""
    values = np.frombuffer(ids.buffers()[1], np.uint8).reshape(-1, ID_BYTES)
    return values[ids.offset : ids.offset + len(ids)]


def spool_rows(
    folder: Path,
    kinds: Sequence[str],
    batches: Iterable[RowBatch],
    facts: Callable[[], Mapping[str, int]] = dict,
    dtype: type[np.integer] = np.uint16,
) -> TrainingRows:
    """Write rows, in a fixed order, to flat files in `folder` unless that is already done; map them into memory.

    Texts of `kinds` are kept, and the counts that `facts` returns after the last row.
    """
    if not (folder / DONE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _write(folder, kinds, batches, dtype)
        with (folder / f".{DONE}").open("w") as done:
            done.write(json.dumps(dict(facts())))
            _sync(done)
        (folder / f".{DONE}").replace(folder / DONE)

    texts = {kind: Ragged(_mapped(folder, f"{kind}.tokens", dtype), _mapped(folder, f"{kind}.offsets", np.int64))
             for kind in kinds}  # fmt: skip
    starts, ids = _mapped(folder, STARTS, np.int64), _mapped(folder, CAPTION_ID, np.uint8).reshape(-1, ID_BYTES)
    several = starts if len(starts) < len(ids) + 1 else None
    return TrainingRows(texts, json.loads((folder / DONE).read_text()), ids, several)


def spooled_image_rows(folder: Path) -> NDArray[np.int64]:
    """The feature row of each spooled row's image, [rows]; empty for texts that belong to no image."""
    return _mapped(folder, IMAGE_ROWS, np.int64)


def _mapped(folder: Path, name: str, kind: type[np.generic]) -> NDArray:
    path = folder / f"{name}.bin"
    # An empty file cannot be mapped.
    return np.memmap(path, kind, "r") if path.stat().st_size else np.zeros(0, kind)


def _write(folder: Path, kinds: Sequence[str], batches: Iterable[RowBatch], dtype: type[np.integer]) -> None:
    ends, rows, begins = dict.fromkeys(kinds, 0), 0, CaptionStarts()
    names = [IMAGE_ROWS, CAPTION_ID, STARTS, *(f"{kind}.{part}" for kind in kinds for part in ("tokens", "offsets"))]
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in names}
        for kind in kinds:
            files[f"{kind}.offsets"].write(np.zeros(1, np.int64).data)
        for batch in batches:
            files[IMAGE_ROWS].write(np.ascontiguousarray(batch.get(IMAGE_ROWS, ()), np.int64).data)
            files[CAPTION_ID].write(id_array(batch[CAPTION_ID]).data)
            files[STARTS].write((rows + np.flatnonzero(begins(batch[CAPTION_ID]))).astype(np.int64).data)
            rows += len(batch[CAPTION_ID])
            for kind in kinds:
                ragged = batch[kind]
                files[f"{kind}.tokens"].write(np.ascontiguousarray(ragged.values, dtype).data)
                files[f"{kind}.offsets"].write((ragged.offsets[1:] + ends[kind]).astype(np.int64).data)
                ends[kind] += len(ragged.values)
        files[STARTS].write(np.array([rows], np.int64).data)
        for file in files.values():
            _sync(file)


def _sync(file: IO[Any]) -> None:
    # Otherwise a power failure could keep the completion marker and lose the data.
    file.flush()
    os.fsync(file.fileno())


def epoch_order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Permutation of the rows for one epoch, int64 [rows].

    Rows are sorted by the raw output of the counter-based Philox generator, which numpy keeps stable across versions
    (unlike its shuffles).
    """
    key = np.array([seed % 2**64, epoch], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(rows), kind="stable")


def draw(captions: NDArray[np.int64], paraphrases: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Draw one of each caption's paraphrases for an epoch, as LaCLIP does (arXiv 2305.20088): numbers from 0, int64
    [n].

    A draw depends only on the seed, the epoch and the caption's number.
    """
    (numbers,) = random_numbers(captions, seed, epoch, PARAPHRASE_DRAWS)
    return (numbers % paraphrases.astype(np.uint64)).astype(np.int64)


def random_numbers(
    captions: NDArray[np.int64], seed: int, epoch: int, offset: int, count: int = 1
) -> NDArray[np.uint64]:
    """`count` random numbers for each caption in an epoch, uint64 [count, n]; other offsets give others.

    A number depends only on the seed, the epoch and the caption's number: it is the output with that number of
    SplitMix64 (Steele et al., 2014), whose state Philox gives for seed and epoch.
    """
    key = np.array([seed % 2**64, epoch], np.uint64)
    states = np.random.Philox(counter=offset, key=key).random_raw(count)
    mixed = states[:, None] + (captions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return mixed ^ mixed >> np.uint64(31)


def draw_images(images: int, count: int, seed: int, step: int) -> NDArray[np.int64]:
    """Draw rows of an index for a step, distinct and ascending, int64 [≤ count]; all of them if there are no more.

    A draw depends only on the seed, the step and the number of images.
    """
    if images <= count:
        return np.arange(images)
    key = np.array([seed % 2**64, step], np.uint64)
    numbers = np.random.Philox(counter=IMAGE_DRAWS, key=key).random_raw(count)
    return np.unique((numbers % np.uint64(images)).astype(np.int64))


class DataOrder:
    """Batches of an endless run: every epoch is a new permutation without its last, incomplete batch.

    An epoch contains each caption once, with one of its paraphrases.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, starts: NDArray[np.int64] | None = None) -> None:
        """Order `rows` captions; a batch is never larger than all of them.

        `starts` has the first row of each caption and the total number of rows; without it each caption is one row.
        """
        self.rows, self.batch_size, self.seed, self.starts = rows, min(batch_size, rows), seed, starts
        self.steps_per_epoch = rows // self.batch_size
        self._epoch: tuple[int, NDArray[np.int64]] | None = None

    def steps(self, epochs: float) -> int:
        """Number of steps of `epochs` passes over the rows, at least one."""
        return max(1, round(epochs * self.rows / self.batch_size))

    def epoch(self, step: int) -> int:
        """The epoch of a step, both from 0."""
        return step // self.steps_per_epoch

    def batch(self, step: int) -> NDArray[np.int64]:
        """Rows of the batch at `step`, from 0; int64 [batch_size], independent of earlier calls."""
        epoch, within = self.epoch(step), step % self.steps_per_epoch
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, epoch_order(self.rows, self.seed, epoch))
        captions = self._epoch[1][within * self.batch_size : (within + 1) * self.batch_size]
        if self.starts is None:
            return captions
        first, after = (np.asarray(self.starts[captions + place]) for place in (0, 1))
        return first + draw(captions, after - first, self.seed, epoch)


class StepImages(NamedTuple):
    """The images of one step."""

    rows: NDArray[np.int64]
    """Row of each image in the feature matrix, [m]."""
    features: NDArray[np.float32]
    """Their stored features, [m, d]."""
    keys: NDArray[np.int64]
    """For each of the n rows a key, which is equal for rows of equal images, [n]."""


class TrainingImages(Protocol):
    """The images that texts are trained against."""

    @property
    def identity(self) -> tuple[NDArray[np.int64], ...]:
        """What distinguishes them from others, for a checkpoint's digest."""
        ...

    def of_step(self, indices: NDArray[np.int64], seed: int, step: int) -> StepImages:
        """The images of a step on the rows at `indices`."""
        ...


@dataclass(frozen=True)
class OwnImages:
    """Images of captions: each row has one."""

    features: Gallery
    """Stored features of all images, float16 [N, d]."""
    rows: NDArray[np.int64]
    """The feature row of each training row's image."""
    keys: NDArray[np.int64]
    """Equal for equal images, [N]."""

    @property
    def identity(self) -> tuple[NDArray[np.int64], ...]:
        """All keys, and the images of the rows."""
        return self.keys, self.rows

    def of_step(self, indices: NDArray[np.int64], seed: int = 0, step: int = 0) -> StepImages:
        """Those of the rows."""
        rows = np.asarray(self.rows[indices])
        return StepImages(rows, np.asarray(self.features[rows], np.float32), np.asarray(self.keys[rows]))


@dataclass(frozen=True)
class DrawnImages:
    """Images of an index, to none of which a text belongs: rankings are compared over some that each step draws."""

    features: Gallery
    count: int

    @property
    def identity(self) -> tuple[NDArray[np.int64], ...]:
        """How many there are, and how many a step draws."""
        return (np.array([len(self.features), self.count]),)

    def of_step(self, indices: NDArray[np.int64], seed: int, step: int) -> StepImages:
        """Drawn ones; no row shares its image with another."""
        rows = draw_images(len(self.features), self.count, seed, step)
        return StepImages(rows, np.asarray(self.features[rows], np.float32), np.arange(len(indices)))


@dataclass(frozen=True)
class Batch:
    """The data of one step."""

    image_rows: NDArray[np.int64]
    """Row of each image in the feature matrix, int64 [m]; those of captions have one for each row."""
    tokens: Ragged
    """The texts of all kinds, one kind after the other; texts shared by kinds occur once."""
    parts: Mapping[str, slice]
    """The slice of each kind's n texts."""
    features: NDArray[np.float32]
    """Stored features of the images, [m, d]."""
    keys: Mapping[str, NDArray[np.int64]]
    """For each kind and for ``image`` a key per row, [n]; equal keys mean equal texts or images."""

    def texts(self, kind: str) -> Ragged:
        """The n texts of one kind."""
        part = self.parts[kind]
        return self.tokens.take(np.arange(part.start, part.stop))

    def embeddings(self, texts: Tensor) -> dict[str, Tensor]:
        """Embeddings of each kind and of ``image``, float32 [n, d], given those of all texts."""
        return {IMAGE: _unit(self.features, texts.device)} | {kind: texts[part] for kind, part in self.parts.items()}

    def gallery(self, device: torch.device) -> Tensor:
        """Embeddings of the batch's distinct images or of the drawn ones, over which rankings are compared, float32
        [m, d]."""
        return _unit(self.features[np.unique(self.image_rows, return_index=True)[1]], device)

    def key_tensors(self, device: torch.device) -> dict[str, Tensor]:
        """The keys on a device."""
        return {kind: torch.from_numpy(values).to(device) for kind, values in self.keys.items()}


def _unit(features: NDArray[np.float32], device: torch.device) -> Tensor:
    # Normalized again, because fp16 rounded them.
    return normalize(torch.from_numpy(features).to(device), dim=-1)


def make_batch(
    rows: TrainingRows,
    indices: NDArray[np.int64],
    kinds: Sequence[str],
    images: StepImages,
    hard_negatives: Ragged | None = None,
    reworded: Mapping[str, Ragged] | None = None,
) -> Batch:
    """The rows at `indices` with the texts of these kinds, and with their n hard negatives, if there are any.

    `reworded` has the n texts of kinds whose own are not used.
    """
    n, stored = len(indices), {kind: rows.texts[kind] for kind in kinds}
    # Kinds with the same texts share a slice, so that the texts are encoded once.
    unique = list({id(texts): texts for texts in stored.values()}.values())
    places = {id(texts): slice(number * n, (number + 1) * n) for number, texts in enumerate(unique)}
    parts = {kind: places[id(texts)] for kind, texts in stored.items()}
    own = {id(stored[kind]): texts for kind, texts in (reworded or {}).items()}
    texts = [own[id(texts)] if id(texts) in own else texts.take(indices) for texts in unique]
    if hard_negatives is not None:
        parts[HARD_NEGATIVE] = slice(len(texts) * n, (len(texts) + 1) * n)
        texts.append(hard_negatives)
    tokens = Ragged.concatenate(texts)
    by_text = token_keys(tokens)
    keys = {kind: by_text[part] for kind, part in parts.items()} | {IMAGE: images.keys}
    return Batch(images.rows, tokens, parts, images.features, keys)


def token_keys(tokens: Ragged) -> NDArray[np.int64]:
    """A 64-bit key for each list of tokens, int64 [n]: equal lists have equal keys.

    A multilinear hash, Σ weight[position] · (token + 1) mod 2⁶⁴ with fixed random weights. Texts with equal tokens
    (for example, apart from letter case or a truncated end) share a key.
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
def prefetched(make: Callable[[int], Batch], steps: Iterable[int]) -> Iterator[Iterator[Batch]]:
    """The batches of these steps; a thread prepares the next one while the caller trains on one."""

    def batches() -> Iterator[Batch]:
        futures = (pool.submit(make, step) for step in steps)
        coming = next(futures, None)
        while coming is not None:
            batch, coming = coming.result(), next(futures, None)
            yield batch

    with ThreadPoolExecutor(1, "batches") as pool:
        yield batches()
