"""Where each segment's rows lie among those of the index, and whose answer to a key counts first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["SegmentPlaces", "first_of"]


@dataclass(frozen=True)
class SegmentPlaces:
    """Where each segment's rows are, in ascending order, and which segment's answers count first."""

    starts: np.ndarray
    ends: np.ndarray
    turns: np.ndarray

    def alive(self, places: np.ndarray) -> np.ndarray:
        """Which are rows of a segment, not of one that is gone: bool [n]."""
        return places < np.append(self.ends, 0)[self._of(places)]

    def turn(self, places: np.ndarray) -> np.ndarray:
        """The turn of each row that is alive."""
        return self.turns[self._of(places)]

    def _of(self, places: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.starts, places, "right") - 1


def first_of(position: np.ndarray, turn: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Indices of the earliest hit of each position."""
    order = np.lexsort((row, turn, position))
    return order[np.unique(position[order], return_index=True)[1]]
