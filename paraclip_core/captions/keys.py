"""Sets of 64-bit text keys, which find duplicates in little memory."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]


def text_keys(texts: Sequence[str], salt: str = "") -> Keys:
    """A 64-bit key of each text, uint64 [n]; another salt gives other keys."""
    head = salt.encode() + b"\0"
    raw = b"".join(blake2b(head + text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(raw, dtype="<u8").astype(np.uint64)


class KeySet:
    """Distinct keys (8 bytes each) in sorted runs; the newest is merged once it is half as large as the one before."""

    def __init__(self) -> None:
        self._runs: list[Keys] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Add keys, uint64 [n]; returns bool [n], True where a key is new, also within `keys`."""
        unique, first = np.unique(keys, return_index=True)
        fresh = ~self.contains(unique)
        new = np.zeros(len(keys), dtype=np.bool_)
        new[first[fresh]] = True
        if fresh.any():
            self._runs.append(unique[fresh])
            while len(self._runs) > 1 and 2 * len(self._runs[-1]) >= len(self._runs[-2]):
                merged = np.concatenate([self._runs.pop(), self._runs.pop()])
                merged.sort()
                self._runs.append(merged)
        return new

    def contains(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """bool [n], True where a key is in the set."""
        members = np.zeros(len(keys), dtype=np.bool_)
        for run in self._runs:
            places = np.minimum(np.searchsorted(run, keys), len(run) - 1)
            members |= run[places] == keys
        return members
