"""Reading scattered numbers out of big files: mapped piece by piece, so that the touched pages do not stay."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["TornIndex", "gathered", "mapped", "windows"]

WINDOW_BYTES = 32 << 20
# So much is mapped around a touched byte in any case.
AROUND_BYTES = 64 << 10
HUGE = getattr(mmap, "MADV_HUGEPAGE", None)


class TornIndex(Exception):
    """A file of the index is not what the rest of the index says; it never leaves `storage`."""


def mapped(path: Path, dtype: str, start: int, count: int, touches: int = 0) -> NDArray:
    """`count` values of a file from byte `start` on, [count]; unmapped when the last reference is gone.

    Where so many are going to be touched that nearly all of it is mapped anyway, big pages are asked for: they take a
    thirtieth of the page faults, which would otherwise be most of what a scattered look-up costs.

    Args:
        path: the file.
        dtype: of the values.
        start: offset of the first value in bytes.
        count: how many values.
        touches: how many of them are going to be looked at, about.

    Raises:
        TornIndex: the file is gone or too short.
    """
    if not count:
        return np.empty(0, dtype)
    try:
        values = np.memmap(path, dtype, "r", start, (count,))
    except (ValueError, FileNotFoundError) as error:
        raise TornIndex(f"{path}: {error}") from error
    if HUGE is not None and touches * AROUND_BYTES >= values.nbytes:
        values._mmap.madvise(HUGE)  # pyright: ignore[reportAttributeAccessIssue]
    return np.asarray(values)


def windows(at: NDArray[np.int64], step: int) -> Iterator[tuple[int, int, int]]:
    """Cut sorted positions where they pass a multiple of `step`: the multiple, and from where to where in `at`."""
    if not len(at):
        return
    first, last = int(at[0]) // step, int(at[-1]) // step
    cuts = np.searchsorted(at, step * np.arange(first, last + 2))
    for number, (start, stop) in enumerate(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True), first):
        if stop > start:
            yield number * step, start, stop


def gathered(path: Path, count: int, at: NDArray[np.int64], stride: int, width: int) -> NDArray[np.uint64]:
    """uint64 [width, n]: the `width` numbers from each `stride` · `at` on, of a file that has `count` numbers.

    Args:
        path: the file.
        count: how many numbers it has.
        at: int64 [n], ascending.
        stride: numbers from one place to the next.
        width: numbers that are read at each place, at least `stride`.

    Raises:
        TornIndex: the file is gone or too short.
    """
    if len(at) and not 0 <= at[0] <= at[-1] <= (count - width) // stride:
        raise TornIndex(f"{path} has {count} numbers, not {width} from {stride} · {at[0]} or {at[-1]} on")
    values = np.empty((width, len(at)), np.uint64)
    step = max(1, WINDOW_BYTES // (8 * stride))
    for begin, start, stop in windows(at, step):
        first = stride * begin
        window = mapped(path, "<u8", 8 * first, min(stride * (step - 1) + width, count - first), stop - start)
        place = (at[start:stop] - begin) * stride
        for turn in range(width):
            window[turn:].take(place, out=values[turn, start:stop], mode="clip")
    return values
