"""Reading scattered numbers out of big files, of which only a window at a time stays in memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["MappedFile", "TornIndex", "windows"]

WINDOW_BYTES = 32 << 20
# So much is mapped around a touched byte in any case.
AROUND_BYTES = 64 << 10
HUGE = getattr(mmap, "MADV_HUGEPAGE", None)
# The system's cache keeps what is let go; only this process no longer counts it as its own.
LET_GO = getattr(mmap, "MADV_DONTNEED", None)


class TornIndex(Exception):
    """A file of the index is not what the rest of the index says; it never leaves `storage`."""


class MappedFile:
    """The numbers of one file, unmapped when the last reference to it is gone."""

    def __init__(self, path: Path, dtype: str, count: int) -> None:
        """Map the first `count` numbers of a file, of type `dtype`.

        Raises:
            TornIndex: the file is gone or too short.
        """
        self.path = path
        self.numbers = np.empty(0, dtype)
        """Read-only, [count]."""
        self._map: mmap.mmap | None = None
        self._window = (0, 0)
        if not count:
            return
        size = count * self.numbers.itemsize
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        except (ValueError, FileNotFoundError) as error:
            raise TornIndex(f"{path}: {error}") from error
        self.numbers = np.frombuffer(self._map, dtype)

    def window(self, start: int, stop: int, touches: int) -> NDArray:
        """The numbers from `start` to `stop`, [stop - start], those beyond the file left out.

        What another window touched is let go, so ask for windows in order and few times. Where so many numbers are
        going to be touched that nearly all of the window is mapped anyway, big pages are asked for: they take a
        thirtieth of the page faults, which would otherwise be most of what a scattered look-up costs.

        Args:
            start: the first number.
            stop: the one behind the last.
            touches: how many of them are going to be looked at, about.
        """
        asked = (start, min(stop, len(self.numbers)))
        if asked != self._window and start < stop:
            self._advise(LET_GO, *self._window)
            self._window = asked
            if touches * AROUND_BYTES >= self.numbers.itemsize * (asked[1] - start):
                self._advise(HUGE, *asked)
        return self.numbers[start:stop]

    def _advise(self, option: int | None, start: int, stop: int) -> None:
        first, last = start * self.numbers.itemsize, stop * self.numbers.itemsize
        first -= first % mmap.PAGESIZE
        if self._map is not None and option is not None and first < last:
            self._map.madvise(option, first, last - first)

    def gathered(self, at: NDArray[np.int64], stride: int, width: int) -> NDArray[np.uint64]:
        """uint64 [width, n]: the `width` numbers from each `stride` · `at` on.

        Args:
            at: int64 [n], ascending.
            stride: numbers from one place to the next.
            width: numbers that are read at each place, at least `stride`.

        Raises:
            TornIndex: the file is too short.
        """
        count = len(self.numbers)
        if len(at) and not 0 <= at[0] <= at[-1] <= (count - width) // stride:
            raise TornIndex(f"{self.path} has {count} numbers, not {width} from {stride} · {at[0]} or {at[-1]} on")
        values = np.empty((width, len(at)), np.uint64)
        step = max(1, WINDOW_BYTES // (8 * stride))
        for begin, start, stop in windows(at, step):
            window = self.window(stride * begin, stride * (begin + step - 1) + width, stop - start)
            place = (at[start:stop] - begin) * stride
            for turn in range(width):
                window[turn:].take(place, out=values[turn, start:stop], mode="clip")
        return values


def windows(at: NDArray[np.int64], step: int) -> Iterator[tuple[int, int, int]]:
    """Cut sorted positions where they pass a multiple of `step`: the multiple, and from where to where in `at`."""
    if not len(at):
        return
    first, last = int(at[0]) // step, int(at[-1]) // step
    cuts = np.searchsorted(at, step * np.arange(first, last + 2))
    for number, (start, stop) in enumerate(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True), first):
        if stop > start:
            yield number * step, start, stop
