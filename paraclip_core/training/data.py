"""Training rows on disk: ragged tokens and image rows as flat files, memory-mapped when they are read.

Resident memory does not grow with the number of rows: they are appended as they stream past, and a batch touches only
its own pages. A caption has a row for each of its rewrites, one after the other.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paraclip_core.clip.packed import Ragged

DONE = "rows.json"
CAPTION_ID = "caption_id"
STARTS = "starts"
ID_BYTES = 16
RowBatch = tuple[Mapping[str, Any], NDArray[np.int64]]
"""Token lists of some rows by kind, with the rows' ids, binary(16), under ``caption_id`` if they have any; and each
row's row in the feature matrix."""


@dataclass(frozen=True)
class Batch:
    """What one step trains on."""

    texts: Mapping[str, Ragged]
    """Tokens by kind: caption, paraphrase_1, paraphrase_2."""
    image_rows: NDArray[np.int64]
    """Row of each image in the feature matrix, int64 [n]."""


@dataclass(frozen=True)
class TrainingRows:
    """Rows to train on: texts by kind, and the feature row of each image."""

    texts: Mapping[str, Ragged]
    image_rows: NDArray[np.int64]
    facts: Mapping[str, int] = field(default_factory=dict)
    """Counts from their collection."""
    ids: NDArray[np.uint8] | None = None
    """Each row's caption id, [n, 16], if they were collected."""
    starts: NDArray[np.int64] | None = None
    """The first row of each caption, then the number of rows, [captions + 1]; None where each row is a caption."""

    def __len__(self) -> int:
        """Captions, which are the rows that an epoch sees."""
        return len(self.image_rows) if self.starts is None else len(self.starts) - 1

    def take(self, indices: NDArray[np.int64], kinds: Sequence[str]) -> Batch:
        """The rows at `indices`, with the texts of these kinds only."""
        # Kinds that share their texts stay one object, so that they are encoded once.
        shared = {id(self.texts[kind]): self.texts[kind] for kind in kinds}
        taken = {key: texts.take(indices) for key, texts in shared.items()}
        return Batch({kind: taken[id(self.texts[kind])] for kind in kinds}, np.asarray(self.image_rows[indices]))

    def caption_ids(self, indices: NDArray[np.int64]) -> list[str]:
        """Hexadecimal ids of the rows at `indices`; none if they were not collected."""
        return [] if self.ids is None else [row.tobytes().hex() for row in self.ids[indices]]

    def as_captions(self) -> TrainingRows:
        """The control: the caption in place of every other text."""
        kinds = ("caption", "paraphrase_1", "paraphrase_2")
        return replace(self, texts=dict.fromkeys(kinds, self.texts["caption"]))


class CaptionStarts:
    """Finds the first row of each caption in a stream; rows of one caption follow each other."""

    def __init__(self) -> None:
        self._last: NDArray[np.uint8] | None = None

    def __call__(self, ids: pa.FixedSizeBinaryArray) -> NDArray[np.bool_]:
        """Which of the next rows begin another caption than the row before, bool [n]."""
        values = id_array(ids)
        begins = np.ones(len(values), bool)
        begins[1:] = (values[1:] != values[:-1]).any(axis=1)
        if len(values):
            if self._last is not None:
                begins[0] = (values[0] != self._last).any()
            self._last = values[-1].copy()
        return begins


def spool_rows(
    folder: Path,
    kinds: Sequence[str],
    batches: Iterable[RowBatch],
    facts: Callable[[], Mapping[str, int]] = dict,
    dtype: type[np.integer] = np.uint16,
) -> TrainingRows:
    """Write rows to flat files in `folder`, unless an earlier attempt finished, and map them into memory.

    Args:
        folder: scratch folder of one fingerprint; written anew unless it is complete.
        kinds: the texts to keep.
        batches: the rows, in a fixed order; not read if the folder is complete.
        facts: called after the last row; the counts are kept with the rows.
        dtype: type of the tokens.
    """
    if not (folder / DONE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _write(folder, kinds, batches, dtype)
        with (folder / f".{DONE}").open("w") as done:
            done.write(json.dumps(dict(facts())))
            _sync(done)
        (folder / f".{DONE}").replace(folder / DONE)
    image_rows = _mapped(folder / "image_rows.bin", np.int64)
    texts = {
        kind: Ragged(_mapped(folder / f"{kind}.tokens.bin", dtype), _mapped(folder / f"{kind}.offsets.bin", np.int64))
        for kind in kinds
    }
    ids = folder / f"{CAPTION_ID}.bin"
    caption_ids = _mapped(ids, np.uint8).reshape(-1, ID_BYTES) if ids.exists() else None
    starts = _starts(folder / f"{STARTS}.bin", len(image_rows))
    return TrainingRows(texts, image_rows, json.loads((folder / DONE).read_text()), caption_ids, starts)


def id_array(ids: pa.FixedSizeBinaryArray) -> NDArray[np.uint8]:
    """Caption ids as numbers, uint8 [n, 16]: a view of the buffer instead of a Python object a row."""
    values = np.frombuffer(ids.buffers()[1], np.uint8).reshape(-1, ID_BYTES)
    return values[ids.offset : ids.offset + len(ids)]


def _write(folder: Path, kinds: Sequence[str], batches: Iterable[RowBatch], dtype: type[np.integer]) -> None:
    ends, rows, begins = dict.fromkeys(kinds, 0), 0, CaptionStarts()
    with ExitStack() as stack:
        names = ["image_rows", *(f"{kind}.{part}" for kind in kinds for part in ("tokens", "offsets"))]
        files = {name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in names}
        for kind in kinds:
            files[f"{kind}.offsets"].write(np.zeros(1, np.int64).data)
        for texts, image_rows in batches:
            files["image_rows"].write(np.ascontiguousarray(image_rows, np.int64).data)
            if CAPTION_ID in texts:
                for name in {CAPTION_ID, STARTS} - files.keys():
                    files[name] = stack.enter_context((folder / f"{name}.bin").open("wb"))
                ids = texts[CAPTION_ID]
                files[CAPTION_ID].write(id_array(ids).data)
                files[STARTS].write((rows + np.flatnonzero(begins(ids))).astype(np.int64).data)
            rows += len(image_rows)
            for kind in kinds:
                ragged = Ragged.from_arrow(texts[kind])
                files[f"{kind}.tokens"].write(np.ascontiguousarray(ragged.values, dtype).data)
                files[f"{kind}.offsets"].write((ragged.offsets[1:] + ends[kind]).astype(np.int64).data)
                ends[kind] += len(ragged.values)
        if STARTS in files:
            files[STARTS].write(np.array([rows], np.int64).data)
        for file in files.values():
            _sync(file)


def _sync(file: IO[Any]) -> None:
    # Otherwise a power cut could keep the mark of completeness and lose the data.
    file.flush()
    os.fsync(file.fileno())


def _starts(path: Path, rows: int) -> NDArray[np.int64] | None:
    """The first row of each caption; None without ids, or where each row is a caption."""
    starts = _mapped(path, np.int64) if path.exists() else None
    return None if starts is None or len(starts) == rows + 1 else starts


def _mapped(path: Path, dtype: type[np.generic]) -> NDArray:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
