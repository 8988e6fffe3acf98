"""How often one answer came for different inputs, in memory that does not grow."""

from __future__ import annotations

import hashlib
from array import array

import numpy as np

__all__ = ["FloodCounter"]

DEPTH = 4
WIDTH_BITS = 20
BLOOM_BITS = 26


class FloodCounter:
    """Counts the distinct inputs of each answer: a count-min sketch behind a Bloom filter, about 24 MiB.

    Counts are exact for as long as nothing collides; at ten million answers a count may be off by a few tens.
    The counts depend on the order of the calls and on nothing else.
    """

    def __init__(self) -> None:
        self._counts = array("I", bytes(4 * DEPTH << WIDTH_BITS))
        self._seen = bytearray(1 << (BLOOM_BITS - 3))
        self._changes: bytearray | None = None

    def count(self, answer: str) -> int:
        """For how many different inputs this answer has been kept so far."""
        return min(self._counts[cell] for cell in _cells(answer))

    def add(self, answer: str, source: str) -> None:
        """Note that the answer was kept for this input; the same pair counts once."""
        pair = hashlib.blake2b(f"{len(answer)}:{answer}{source}".encode("utf-8", "surrogatepass"), digest_size=16)
        raw, known = pair.digest(), True
        for start in range(0, 16, 4):
            bit = int.from_bytes(raw[start : start + 4], "little") & ((1 << BLOOM_BITS) - 1)
            if not self._seen[bit >> 3] & (1 << (bit & 7)):
                known = False
                self._seen[bit >> 3] |= 1 << (bit & 7)
        if not known:
            cells = _cells(answer)
            for cell in cells:
                self._counts[cell] += 1
            if self._changes is not None:
                self._changes += raw + array("I", cells).tobytes()

    def changes(self) -> bytes:
        """What was counted since the last call, 32 bytes for each new pair; the first call only begins the record."""
        found = bytes(self._changes or b"")
        self._changes = bytearray()
        return found

    def repeat(self, changes: bytes) -> None:
        """Count again what another counter's `changes` gave, in the same order of calls."""
        words = np.frombuffer(changes, dtype="<u4").reshape(-1, 4 + DEPTH)
        bits = words[:, :4].ravel() & ((1 << BLOOM_BITS) - 1)
        one = np.left_shift(np.uint8(1), (bits & 7).astype(np.uint8))
        np.bitwise_or.at(np.frombuffer(self._seen, dtype=np.uint8), bits >> 3, one)
        # Further inputs of an answer that is in there already count further, so equal cells must add up.
        np.add.at(np.frombuffer(self._counts, dtype=np.uint32), words[:, 4:].ravel(), 1)


def _cells(answer: str) -> list[int]:
    raw = hashlib.blake2b(answer.encode("utf-8", "surrogatepass"), digest_size=4 * DEPTH).digest()
    mask = (1 << WIDTH_BITS) - 1
    return [(row << WIDTH_BITS) + (int.from_bytes(raw[4 * row : 4 * row + 4], "little") & mask) for row in range(DEPTH)]
