"""Reading scattered numbers out of big files: mapped piece by piece, so that the touched pages do not stay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["TornIndex", "gathered", "mapped", "windows"]

WINDOW_BYTES = 64 << 20


class TornIndex(Exception):
    """A file of the index is not what the rest of the index says; it never leaves `storage`."""


def mapped(path: Path, dtype: str, start: int, count: int) -> NDArray:
    """`count` values of a file from byte `start` on, [count]; unmapped when the last reference is gone.

    Raises:
        TornIndex: the file is gone or too short.
    """
    if not count:
        return np.empty(0, dtype)
    try:
        return np.asarray(np.memmap(path, dtype, "r", start, (count,)))
    except (ValueError, FileNotFoundError) as error:
        raise TornIndex(f"{path}: {error}") from error


def windows(at: NDArray[np.int64], step: int) -> Iterator[tuple[int, int, int]]:
    """Cut sorted positions where they pass a multiple of `step`: the multiple, and from where to where in `at`."""
    if not len(at):
        return
    first, last = int(at[0]) // step, int(at[-1]) // step
    cuts = np.searchsorted(at, step * np.arange(first, last + 2))
    for number, (start, stop) in enumerate(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True), first):
        if stop > start:
            yield number * step, start, stop


def gathered(path: Path, count: int, at: NDArray[np.int64]) -> NDArray[np.uint64]:
    """uint64 [n]: the numbers at sorted positions of a file that has `count` of them.

    Raises:
        TornIndex: the file is gone or too short.
    """
    if len(at) and not 0 <= at[0] <= at[-1] < count:
        raise TornIndex(f"{path} has no numbers {at[0]} to {at[-1]}, but {count}")
    values = np.empty(len(at), np.uint64)
    step = WINDOW_BYTES // 8
    for begin, start, stop in windows(at, step):
        window = mapped(path, "<u8", 8 * begin, min(step, count - begin))
        values[start:stop] = window[at[start:stop] - begin]
    return values
