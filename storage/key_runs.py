"""Keys in sorted files with gaps, in which a key is looked for where it should be.

A run has an entry of 64 bits for each of some rows: the first 32 bits of the row's key, then the row's number. So it
says which rows may have a key (among 20 million rows, one key in two hundred gets a row of another), and whoever has
the rows compares whole keys. A run's file has two slots a row. Keys are hashes, so the share of all keys that are
smaller says at which slot a key's entry is, but for a few slots: entries are in order, each at its slot or, where that
is taken, behind the one before it. An empty slot repeats the entry that follows.
So a key costs one memory access in a run of any size; a binary search would cost a cache miss for every halving.
Rows come as small runs; two of about the same size are joined into one, so that there are few runs however many rows,
and an entry is rewritten few times.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.mapped import MappedFile, TornIndex, windows

__all__ = ["Run", "checked", "due", "entries", "find", "join", "sweep", "write"]

FANOUT = 2
WINDOW_SLOTS = 1 << 22
JOIN_ROWS = 1 << 20
# Keys that are looked for at once, so that what they touch and what is computed stays in the processor's caches.
BLOCK = 1 << 14
LOWER = np.uint64((1 << 32) - 1)
UPPER = ~LOWER
HALF = np.uint64(32)


class Run(NamedTuple):
    """A sorted file."""

    number: int
    rows: int
    slots: int
    """In the file, up to the last entry."""
    reach: int
    """Slots in which a key's rows can be, from its own on."""


def entries(hi: NDArray[np.uint64], first: int = 0) -> NDArray[np.uint64]:
    """uint64 [n], sorted: the first 32 bits of keys, and below them their numbers `first`, `first` + 1, …

    Args:
        hi: upper halves of the keys, uint64 [n].
        first: the number of the first one.

    Raises:
        OverflowError: a number has more than 32 bits.
    """
    if first + len(hi) > 1 << 32:
        raise OverflowError(f"an index cannot have {first + len(hi)} rows")
    made = (hi & UPPER) | np.arange(first, first + len(hi), dtype=np.uint64)
    made.sort()
    return made


def write(folder: Path, number: int, hi: NDArray[np.uint64], first: int) -> Run:
    """Sort the keys of the rows `first`, `first` + 1, … into a new file, on disk when it returns.

    Raises:
        OSError: the disk is full or read-only.
        OverflowError: there are more than 2³² rows.
    """
    return _write(folder, number, len(hi), [entries(hi, first)])


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


def find(folder: Path, runs: Iterable[Run], asked: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every row whose key begins like one that is asked for: int64 [hits] each, the key's number and the row's.

    They come by the rows' numbers. Few of them, but some, are rows of other keys.

    Args:
        folder: where the runs are.
        runs: all of them.
        asked: the keys, as `entries` makes them.

    Raises:
        TornIndex: a file is not what was written.
    """
    found = [np.zeros(0, np.uint64)]
    for run in runs:
        found += _find(_mapped(folder, run), asked, run)
    hits = np.concatenate(found)
    hits.sort()
    return (hits & LOWER).view(np.int64), (hits >> HALF).view(np.int64)


def checked(folder: Path, run: Run) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
    """A run's keys, as their first 32 bits, and its rows in order, a window at a time.

    Raises:
        TornIndex: the file is gone, too short or out of order.
    """
    last, end, rows = np.zeros(0, np.uint64), -1, 0
    for start in range(0, run.slots, JOIN_ROWS):
        # An entry ends where the slot behind holds another one.
        part = _read(folder, run, start, min(start + JOIN_ROWS + 1, run.slots))
        ends = np.flatnonzero(part[1:] != part[:-1])
        if start + JOIN_ROWS >= run.slots:
            ends = np.append(ends, len(part) - 1)
        if not len(ends):
            continue
        found, both = part[ends], np.concatenate([last, part[ends]])
        slots, reach = _slots(found, run.rows, end)
        if (both[1:] <= both[:-1]).any() or (slots != start + ends).any() or reach > run.reach:
            raise TornIndex(f"{_path(folder, run.number)} is out of order")
        last, end, rows = found[-1:], int(slots[-1]), rows + len(found)
        yield found >> HALF, (found & LOWER).view(np.int64)
    if rows != run.rows:
        raise TornIndex(f"{_path(folder, run.number)} has {rows} rows, not {run.rows}")


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
    return rows.bit_length()


def _home(entry: NDArray[np.uint64], rows: int) -> NDArray[np.int64]:
    """The slots at which sorted entries should be, of two a row: int64 [n], ascending."""
    return (((entry >> HALF) * np.uint64(rows)) >> np.uint64(31)).view(np.int64)


def _slots(part: NDArray[np.uint64], rows: int, end: int) -> tuple[NDArray[np.int64], int]:
    """Where sorted entries go behind slot `end`, int64 [n], and the reach of the one that is farthest from its own."""
    home, turn = _home(part, rows), np.arange(len(part))
    free = np.maximum(home, end + 1)
    slots = np.maximum.accumulate(free - turn) + turn
    return slots, int((slots - home).max()) + 1


def _write(folder: Path, number: int, rows: int, parts: Iterable[NDArray[np.uint64]]) -> Run:
    end, reach = -1, 0
    # Unbuffered, as one big write gets big pages in the system's cache, which a look-up maps with few faults.
    with _path(folder, number).open("wb", buffering=0) as file:
        for part in parts:
            if not len(part):
                continue
            slots, far = _slots(part, rows, end)
            left = np.repeat(part, np.diff(slots, prepend=end)).astype("<u8", copy=False).data.cast("B")
            end, reach = int(slots[-1]), max(reach, far)
            while left:
                left = left[file.write(left) :]
        os.fsync(file.fileno())
    return Run(number, rows, end + 1, reach)


def _distinct(part: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return part[np.append(part[1:] != part[:-1], True)] if len(part) else part


def _merged(folder: Path, runs: Sequence[Run], rows: int) -> Iterator[NDArray[np.uint64]]:
    parts = max(1, -(-rows // JOIN_ROWS))
    bounds = np.array([(number << 64) // parts for number in range(1, parts)], np.uint64)
    cuts = []
    for run in runs:
        inner = np.searchsorted(_mapped(folder, run).numbers, bounds)
        cuts.append(np.concatenate([[0], inner, [run.slots]]).tolist())
    for part in range(parts):
        pieces = [_read(folder, run, cut[part], cut[part + 1]) for run, cut in zip(runs, cuts, strict=True)]
        merged = np.concatenate([_distinct(piece) for piece in pieces] or [np.empty(0, np.uint64)])
        # What is sorted already in stretches is merged.
        merged.sort(kind="stable")
        yield merged


def _read(folder: Path, run: Run, start: int, stop: int) -> NDArray[np.uint64]:
    try:
        values = np.fromfile(_path(folder, run.number), "<u8", stop - start, offset=8 * start)
    except FileNotFoundError as error:
        raise TornIndex(str(error)) from error
    if len(values) < stop - start:
        raise TornIndex(f"{_path(folder, run.number)} is too short")
    return values


def _mapped(folder: Path, run: Run) -> MappedFile:
    return MappedFile(_path(folder, run.number), "<u8", run.slots)


def _find(slots: MappedFile, asked: NDArray[np.uint64], run: Run) -> Iterator[NDArray[np.uint64]]:
    """Rows' numbers, and below them the keys'."""
    # Keys are hashes, so that they are as close to each other everywhere.
    touches = len(asked) * WINDOW_SLOTS // max(run.slots, 1)
    for start in range(0, len(asked), BLOCK):
        block = asked[start : start + BLOCK]
        home = _home(block, run.rows)
        for begin, first, last in windows(home, WINDOW_SLOTS):
            there = slots.window(begin, begin + WINDOW_SLOTS + run.reach, touches)
            yield from _hits(there, home[first:last] - begin, block[first:last])


def _hits(there: NDArray[np.uint64], at: NDArray[np.int64], asked: NDArray[np.uint64]) -> Iterator[NDArray[np.uint64]]:
    while len(asked):
        if at[-1] >= len(there):
            inside = at < len(there)
            at, asked = at[inside], asked[inside]
        entry = there[at]
        # An entry behind the key ends the search.
        on = (entry <= (asked | LOWER)).nonzero()[0]
        at, asked, entry = at[on] + 1, asked[on], entry[on]
        same = ((entry ^ asked) <= LOWER).nonzero()[0]
        if len(same):
            yield (entry[same] << HALF) | (asked[same] & LOWER)
