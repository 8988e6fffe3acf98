"""Keys in sorted files, searched without reading all that is there.

A run holds the keys of some rows, sorted, each with the number of its row. Rows come as small runs; four of about the
same size are joined into one, so that of any number of rows there are few runs, and a row is written few times.
A key is two numbers of 64 bits. A file holds all upper halves, then all lower halves, then the rows' numbers, and last
a filter: eight to sixteen bits a key, of which those are set that upper halves point to by their first bits. Nearly
every key that another run holds is passed over by a look at its bit, in the order in which keys and bits are sorted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.mapped import TornIndex, mapped, windows

__all__ = ["Run", "checked", "due", "find", "join", "sweep", "write"]

FANOUT = 4
WINDOW_ROWS = 1 << 21
JOIN_ROWS = 1 << 20
# Keys that are looked for at once, so that what is computed on the way stays in the processor's caches.
BLOCK = 1 << 15

Keys = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint32]]


class Run(NamedTuple):
    """A sorted file."""

    number: int
    rows: int
    most: int
    """Rows that share an upper half, at most."""


def write(folder: Path, number: int, hi: NDArray[np.uint64], lo: NDArray[np.uint64], first: int) -> Run:
    """Sort the keys of the rows `first`, `first` + 1, … into a new file, on disk when it returns.

    Raises:
        OSError: the disk is full or read-only.
        OverflowError: there are more than 2³² rows.
    """
    if first + len(hi) > 1 << 32:
        raise OverflowError(f"an index cannot have {first + len(hi)} rows")
    order = np.argsort(hi)
    sorted_ = (hi[order], lo[order], (order + first).astype(np.uint32))
    return _write(folder, number, len(hi), [sorted_])


def due(runs: Sequence[Run]) -> list[Run]:
    """The runs that should become one now; none, or at least `FANOUT`."""
    chosen: list[Run] = []
    while True:
        rest = [run for run in runs if run not in chosen]
        tiers = Counter(_tier(run.rows) for run in rest)
        if chosen:
            tiers[_tier(sum(run.rows for run in chosen))] += 1
        full = [tier for tier, count in tiers.items() if count >= FANOUT]
        if not full:
            return chosen
        chosen += [run for run in rest if _tier(run.rows) <= max(full)]


def join(folder: Path, runs: Sequence[Run], number: int) -> Run:
    """Merge runs into a new one, a window of the keys at a time.

    Raises:
        OSError: the disk is full or read-only.
        TornIndex: a file is not what was written.
    """
    rows = sum(run.rows for run in runs)
    return _write(folder, number, rows, _merged(folder, runs, rows))


def find(
    folder: Path, runs: Iterable[Run], hi: NDArray[np.uint64], lo: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every row of the keys: int64 [hits] each, the position of the key that was asked for and the row's number.

    Args:
        folder: where the runs are.
        runs: all of them.
        hi: upper halves, sorted.
        lo: their lower halves.

    Raises:
        TornIndex: a file is not what was written.
    """
    hits = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for run in runs:
        hits += _find(_path(folder, run.number), run, hi, lo)
    positions, places = zip(*hits, strict=True)
    return np.concatenate(positions), np.concatenate(places)


def checked(folder: Path, run: Run) -> Iterator[Keys]:
    """The keys of a run in order, a window at a time.

    Raises:
        TornIndex: the file is gone, too short or out of order.
    """
    last = np.uint64(0)
    for start in range(0, run.rows, JOIN_ROWS):
        hi, lo, places = _read(folder, run, start, min(start + JOIN_ROWS, run.rows))
        ordered = hi[0] >= last and (hi[1:] >= hi[:-1]).all() and _most(hi) <= run.most
        if not ordered or len(_passing(_path(folder, run.number), run, hi)) < len(hi):
            raise TornIndex(f"{_path(folder, run.number)} is out of order")
        last = hi[-1]
        yield hi, lo, places


def sweep(folder: Path, runs: Iterable[Run]) -> None:
    """Delete the files that are no longer, or never became, one of the runs.

    Raises:
        OSError: the folder is read-only.
    """
    kept = {_path(folder, run.number) for run in runs}
    for path in folder.glob("run-*.keys"):
        if path not in kept:
            path.unlink(missing_ok=True)


def _path(folder: Path, number: int) -> Path:
    return folder / f"run-{number}.keys"


def _tier(rows: int) -> int:
    return rows.bit_length() // 2


def _filter_bits(rows: int) -> int:
    """The binary logarithm of a filter's bits."""
    return max(6, (8 * rows - 1).bit_length())


def _write(folder: Path, number: int, rows: int, parts: Iterable[Keys]) -> Run:
    most = done = last = 0
    end = -1
    place, power = 20 * rows, _filter_bits(rows)
    with _path(folder, number).open("w+b") as file:
        file.truncate(place + (1 << power - 3))
        for part in parts:
            most = max(most, _most(part[0]))
            for column, start in zip(part, (8 * done, 8 * (rows + done), 16 * rows + 4 * done), strict=True):
                file.seek(start)
                file.write(column.data)
            if len(part[0]):
                first, filter_ = _filter(part[0], power)
                # The byte in which the part before ended.
                filter_[0] |= last if first == end else 0
                end, last = first + len(filter_) - 1, int(filter_[-1])
                file.seek(place + first)
                file.write(filter_.data)
            done += len(part[0])
        file.flush()
        os.fsync(file.fileno())
    return Run(number, rows, most)


def _filter(hi: NDArray[np.uint64], power: int) -> tuple[int, NDArray[np.uint8]]:
    """The filter's bytes from the first that sorted upper halves touch to the last, and the place of the first."""
    bit = hi >> np.uint64(64 - power)
    byte = (bit >> np.uint64(3)).view(np.int64)
    starts = np.flatnonzero(np.append(True, byte[1:] != byte[:-1]))
    mask = np.left_shift(np.uint8(1), (bit & np.uint64(7)).astype(np.uint8))
    first = int(byte[0])
    found = np.zeros(int(byte[-1]) - first + 1, np.uint8)
    found[byte[starts] - first] = np.bitwise_or.reduceat(mask, starts)
    return first, found


def _passing(path: Path, run: Run, hi: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Positions of the upper halves whose bit is set."""
    power = _filter_bits(run.rows)
    filter_ = mapped(path, "u1", 20 * run.rows, 1 << power - 3)
    passing = [np.zeros(0, np.int64)]
    for start in range(0, len(hi), BLOCK):
        bit = hi[start : start + BLOCK] >> np.uint64(64 - power)
        byte = filter_[(bit >> np.uint64(3)).view(np.int64)]
        passing.append(start + np.flatnonzero(byte >> (bit & np.uint64(7)).astype(np.uint8) & np.uint8(1)))
    return np.concatenate(passing)


def _most(hi: NDArray[np.uint64]) -> int:
    if not len(hi):
        return 0
    # Counting is slow, and keys that share a half are rare.
    return int(np.unique(hi, return_counts=True)[1].max()) if (hi[1:] == hi[:-1]).any() else 1


def _merged(folder: Path, runs: Sequence[Run], rows: int) -> Iterator[Keys]:
    parts = -(-rows // JOIN_ROWS)
    # The same upper halves never fall apart.
    bounds = np.array([(number << 64) // parts for number in range(1, parts)], np.uint64)
    cuts = []
    for run in runs:
        inner = np.searchsorted(mapped(_path(folder, run.number), "<u8", 0, run.rows), bounds)
        cuts.append(np.concatenate([[0], inner, [run.rows]]).tolist())
    for part in range(parts):
        pieces = [_read(folder, run, cut[part], cut[part + 1]) for run, cut in zip(runs, cuts, strict=True)]
        hi, lo, places = (np.concatenate(columns) for columns in zip(*pieces, strict=True))
        order = np.argsort(hi)
        yield hi[order], lo[order], places[order]


def _read(folder: Path, run: Run, start: int, stop: int) -> Keys:
    def column(file: BinaryIO, dtype: str, begin: int) -> NDArray:
        file.seek(begin)
        values = np.fromfile(file, dtype, stop - start)
        if len(values) < stop - start:
            raise TornIndex(f"{file.name} is too short")
        return values

    try:
        with _path(folder, run.number).open("rb") as file:
            hi, lo = column(file, "<u8", 8 * start), column(file, "<u8", 8 * (run.rows + start))
            return hi, lo, column(file, "<u4", 16 * run.rows + 4 * start)
    except FileNotFoundError as error:
        raise TornIndex(str(error)) from error


def _find(
    path: Path, run: Run, hi: NDArray[np.uint64], lo: NDArray[np.uint64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    if not run.rows or not len(hi):
        return
    passing = _passing(path, run, hi)
    hi, lo = hi[passing], lo[passing]
    starts = np.arange(0, run.rows, WINDOW_ROWS)
    firsts = np.array([mapped(path, "<u8", 8 * start, 1)[0] for start in starts.tolist()], np.uint64)
    # A key that equals the first of a window may begin in the window before.
    window = np.maximum(np.searchsorted(firsts, hi) - 1, 0)
    for number, start, stop in windows(window, 1):
        begin = int(starts[number])
        count = min(WINDOW_ROWS + run.most, run.rows - begin)
        keys = mapped(path, "<u8", 8 * begin, count), mapped(path, "<u8", 8 * (run.rows + begin), count)
        places = mapped(path, "<u4", 16 * run.rows + 4 * begin, count)
        for first in range(start, stop, BLOCK):
            part = slice(first, min(first + BLOCK, stop))
            at = np.searchsorted(keys[0], hi[part])
            for turn in range(run.most):
                hit = np.flatnonzero(keys[0].take(at + turn, mode="clip") == hi[part])
                row = at[hit] + turn
                # Past the last row there is none, though the last one is looked at once more.
                real = (row < count) & (keys[1].take(row, mode="clip") == lo[part][hit])
                yield passing[first + hit[real]], places[row[real]].astype(np.int64)
