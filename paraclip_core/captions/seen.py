"""A set of 64-bit keys that says which of a batch are new, in 8 bytes a key."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["KeySet", "Keys"]

Keys = npt.NDArray[np.uint64]

_PARTS_BITS = 4


class KeySet:
    """Keys in sorted runs, which are merged when the newer one has grown to half of the older.

    The key space is cut into 16 parts by the top bits, so that a merge copies a sixteenth of the keys at most: ten
    million keys need 80 MB and 10 MB more at the peak. Keys must be spread evenly, as hashes are.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._parts: list[list[Keys]] = [[] for _ in range(1 << _PARTS_BITS)]
        self._count = 0

    def __len__(self) -> int:
        """Number of different keys."""
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes that the keys take."""
        return sum(run.nbytes for part in self._parts for run in part)

    def add(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Add keys (uint64, [n]); returns bool [n], True where a key comes for the first time, within `keys` too."""
        unique, first = np.unique(keys, return_index=True)
        fresh = ~self._known(unique)
        self._insert(unique[fresh])
        new = np.zeros(len(keys), dtype=np.bool_)
        new[first[fresh]] = True
        return new

    def contains(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """bool [n], True where a key is in the set."""
        unique, inverse = np.unique(keys, return_inverse=True)
        return self._known(unique)[inverse]

    def _known(self, unique: Keys) -> npt.NDArray[np.bool_]:
        known = np.zeros(len(unique), dtype=np.bool_)
        for part, piece in enumerate(_pieces(unique)):
            wanted = unique[piece]
            for run in self._parts[part]:
                places = np.searchsorted(run, wanted)
                np.minimum(places, len(run) - 1, out=places)
                known[piece] |= run[places] == wanted
        return known

    def _insert(self, fresh: Keys) -> None:
        self._count += len(fresh)
        for part, piece in enumerate(_pieces(fresh)):
            if piece.start == piece.stop:
                continue
            runs = self._parts[part]
            runs.append(fresh[piece].copy())
            while len(runs) > 1 and 2 * len(runs[-1]) >= len(runs[-2]):
                newer, older = runs.pop(), runs.pop()
                merged = np.concatenate([older, newer])
                merged.sort()
                runs.append(merged)


def _pieces(unique: Keys) -> list[slice]:
    """Where each part's keys lie among sorted keys."""
    parts = 1 << _PARTS_BITS
    starts = np.arange(1, parts, dtype=np.uint64) << np.uint64(64 - _PARTS_BITS)
    edges = [0, *np.searchsorted(unique, starts).tolist(), len(unique)]
    return [slice(edges[n], edges[n + 1]) for n in range(parts)]
