"""The index's rows (key and completions) in files that only grow, each found by its number without reading the others.

Three files hold the texts one after another, the end of each text (in bytes), and for each row its key and its end (in
texts). The end of a null text has its highest bit set. The index remembers how far the files are filled, so an append
counts whole or not at all: what lies beyond was never finished and is overwritten.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage.mapped import WINDOW_BYTES, MappedFile, TornIndex

__all__ = ["AnswerFile", "Filled", "Rows"]

NULL = np.uint64(1 << 63)
ENDS = NULL - np.uint64(1)
# Rows that are read at once, so that what is computed on the way stays in the processor's caches.
BLOCK = 1 << 14
# Numbers of a row: both halves of its key as they lie in memory, and the end.
ROW = 3


class Filled(NamedTuple):
    """How far the files are filled."""

    rows: int = 0
    strings: int = 0
    bytes: int = 0


class Rows(NamedTuple):
    """Some rows."""

    keys: NDArray[np.uint64]
    """[n, 2], the 16 bytes of each."""
    first: NDArray[np.int64]
    """[n], how many texts lie before each row's first one."""
    last: NDArray[np.int64]
    """[n], and before the next row's."""

    def chosen(self, which: NDArray) -> Rows:
        """Some of them, by a mask or their positions."""
        return Rows(self.keys[which], self.first[which], self.last[which])


class AnswerFile:
    """Keys and completions in one folder; one process at a time appends."""

    def __init__(self, folder: Path) -> None:
        """`folder` is made with the first append."""
        self._rows, self._strings, self._texts = (folder / name for name in ("rows.u64", "strings.u64", "texts.bin"))

    def append(self, keys: NDArray[np.uint64], completions: pa.ChunkedArray, filled: Filled) -> Filled:
        """Write rows behind what is filled, and to disk.

        Args:
            keys: the 16 bytes of each, [n, 2].
            completions: list<string> [n].
            filled: how far the files were filled.

        Raises:
            OSError: the disk is full or read-only.
            TornIndex: the files are shorter than what is filled.
        """
        # Both files of ends begin with the end of nothing.
        starts = (8 * (ROW * filled.rows + 1), 8 * (filled.strings + 1), filled.bytes)
        files: list[BinaryIO] = []
        try:
            for path, start, lead in zip((self._rows, self._strings, self._texts), starts, (8, 8, 0), strict=True):
                files.append(_opened(path, start, lead))
            done = 0
            for chunk in completions.chunks:
                filled = _written(keys[done : done + len(chunk)], chunk, filled, *files)
                done += len(chunk)
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        finally:
            for file in files:
                file.close()
        return filled

    def rows(self, numbers: NDArray[np.int64], filled: Filled) -> Rows:
        """What is known of rows, by their numbers in ascending order.

        Raises:
            TornIndex: the files are not what was written.
        """
        keys = np.empty((len(numbers), 2), np.uint64)
        first, last = np.empty((2, len(numbers)), np.int64)
        file = MappedFile(self._rows, "<u8", ROW * filled.rows + 1 if len(numbers) else 0)
        for start in range(0, len(numbers), BLOCK):
            part = slice(start, start + BLOCK)
            begin, *halves, end = file.gathered(numbers[part], ROW, ROW + 1)
            keys[part, 0], keys[part, 1] = halves
            first[part], last[part] = begin.view(np.int64), end.view(np.int64)
        return Rows(keys, first, last)

    def take(self, rows: Rows, filled: Filled) -> Iterator[tuple[int, pa.ListArray]]:
        """list<string> of different rows in ascending order, in pieces: where each begins in `rows`, and its answers.

        Raises:
            TornIndex: the files are not what was written.
        """
        if not len(rows.keys):
            return
        strings = MappedFile(self._strings, "<u8", filled.strings + 1)
        texts = MappedFile(self._texts, "u1", filled.bytes)
        for start in range(0, len(rows.keys), BLOCK):
            part = slice(start, start + BLOCK)
            _check(self._rows, rows.first[part], rows.last[part], filled.strings)
            for begin, lists in _take(strings, texts, rows.first[part], rows.last[part]):
                yield start + begin, lists


def _take(
    strings: MappedFile, texts: MappedFile, first: NDArray[np.int64], last: NDArray[np.int64]
) -> Iterator[tuple[int, pa.ListArray]]:
    edges = np.concatenate([np.zeros(1, np.int64), np.cumsum(last - first)])
    wanted = np.arange(edges[-1]) + np.repeat(first - edges[:-1], last - first)
    begins, ends = strings.gathered(wanted, 1, 2)
    nulls = ends >= NULL
    begins, ends = (begins & ENDS).view(np.int64), (ends & ENDS).view(np.int64)
    _check(strings.path, begins, ends, len(texts.numbers))
    for start, stop in _cut(begins, ends, edges):
        begin, end = edges[start], edges[stop]
        found = _text(texts, begins[begin:end], ends[begin:end], nulls[begin:end])
        lists = pa.ListArray.from_arrays(pa.array((edges[start : stop + 1] - begin).astype(np.int32)), found)
        try:
            lists.validate(full=True)
        except pa.ArrowInvalid as error:
            raise TornIndex(f"{texts.path}: {error}") from error
        yield start, lists


def _text(file: MappedFile, begins: NDArray[np.int64], ends: NDArray[np.int64], nulls: NDArray) -> pa.Array:
    if not len(begins):
        return pa.array([], pa.string())
    # What is wanted and what lies between take turns, so that nothing else need be looked at.
    offsets = np.stack([begins, ends], axis=1).ravel() - begins[0]
    data = file.window(int(begins[0]), int(ends[-1]), len(begins))
    whole = pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))
    texts = whole.take(pa.array(np.arange(0, len(offsets), 2))).cast(pa.string())
    if nulls.any():
        texts = pc.if_else(pa.array(nulls), pa.scalar(None, pa.string()), texts)  # pyright: ignore[reportAttributeAccessIssue]
    return texts


def _opened(path: Path, start: int, lead: int) -> BinaryIO:
    """A file for writing from `start` on; a new one gets `lead` bytes of zeros."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if start == lead:
        file = path.open("wb")
        file.write(bytes(lead))
        return file
    file = path.open("r+b") if path.exists() else None
    if file is None or file.seek(0, os.SEEK_END) < start:
        if file is not None:
            file.close()
        raise TornIndex(f"{path} is shorter than {start} bytes")
    file.seek(start)
    return file


def _written(
    keys: NDArray[np.uint64], lists: pa.ListArray, filled: Filled, rows: BinaryIO, strings: BinaryIO, texts: BinaryIO
) -> Filled:
    offsets = np.asarray(lists.offsets).astype(np.int64)
    inner = lists.flatten()
    nulls = np.asarray(inner.is_null()) if inner.null_count else None
    inner = inner if nulls is None else inner.fill_null("")
    _, places, data = inner.buffers()
    size = 0
    ends = offsets[1:] - offsets[0] + filled.strings
    rows.write(np.column_stack([keys, ends.view(np.uint64)]).data)
    if len(inner):
        ends = np.frombuffer(places, np.int32)[inner.offset : inner.offset + len(inner) + 1].astype(np.int64)
        size = int(ends[-1] - ends[0])
        marked = (ends[1:] - ends[0] + filled.bytes).astype("<u8")
        strings.write((marked if nulls is None else np.where(nulls, marked | NULL, marked)).data)
        if size:
            texts.write(memoryview(data)[ends[0] : ends[-1]])
    return Filled(filled.rows + len(lists), filled.strings + len(inner), filled.bytes + size)


def _check(path: Path, begins: NDArray[np.int64], ends: NDArray[np.int64], most: int) -> None:
    # What is wanted lies in ascending order, so that only the last end can be too big.
    if len(begins) and (begins[0] < 0 or ends[-1] > most or (begins > ends).any() or (ends[:-1] > begins[1:]).any()):
        raise TornIndex(f"{path} is out of order")


def _cut(begins: NDArray[np.int64], ends: NDArray[np.int64], edges: NDArray[np.int64]) -> Iterable[tuple[int, int]]:
    """Cut rows so that the texts of a piece, and what lies between them, fit into a window."""
    count = len(edges) - 1
    begin_of = np.append(begins, ends[-1:] if len(ends) else [0])[edges[:-1]]
    end_of = np.append([0], ends)[edges[1:]]
    start = 0
    while start < count:
        stop = max(start + 1, int(np.searchsorted(end_of, begin_of[start] + WINDOW_BYTES, "right")))
        yield start, stop
        start = stop
