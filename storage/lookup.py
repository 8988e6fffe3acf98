"""Where the rows of an index are, by their ids: millions of ids looked up at once, without a Python object for any."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

__all__ = ["IdIndex", "string_hashes"]

HASH_ROWS = 65_536


class IdIndex:
    """Finds ids by a 64-bit hash and compares what it finds, so that a collision is never taken for a match."""

    def __init__(self, ids: pa.Array | pa.ChunkedArray) -> None:
        """Index the ids, whose places are the rows.

        Raises:
            ValueError: an id comes twice.
        """
        whole = pa.chunked_array([ids]) if isinstance(ids, pa.Array) else ids
        # Large strings, because all ids together may have more than 2 GiB.
        chunks = whole.cast(pa.large_string()).chunks
        self._ids = pa.concat_arrays(chunks) if chunks else pa.array([], pa.large_string())
        hashes = string_hashes(self._ids)
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]
        same = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        # Two ids with one hash are next to impossible; then all are looked up by their text.
        self._collides = bool(len(same))
        if self._collides and len(self._ids.unique()) != len(self._ids):
            raise ValueError("an id comes twice")

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> pa.Array:
        """The ids in order."""
        return self._ids

    def find(self, wanted: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
        """int64 [n]: the row of each id, -1 for null and for ids that are not there."""
        chunks = wanted.chunks if isinstance(wanted, pa.ChunkedArray) else [wanted]
        return np.concatenate([np.zeros(0, np.int64), *(self._find(chunk.cast(pa.large_string())) for chunk in chunks)])

    def _find(self, wanted: pa.Array) -> NDArray[np.int64]:
        if self._collides:
            found = pc.call_function("index_in", [wanted], pc.SetLookupOptions(self._ids, skip_nulls=True))
            return np.asarray(found.fill_null(-1), dtype=np.int64)
        if not len(self._ids):
            return np.full(len(wanted), -1, np.int64)
        hashes = string_hashes(wanted)
        places = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        rows = self._order[places]
        equal = pc.call_function("equal", [self._ids.take(pa.array(rows)), wanted])
        return np.where(np.asarray(equal.fill_null(False)), rows, -1)


def string_hashes(strings: pa.Array) -> NDArray[np.uint64]:
    """A 64-bit hash of each string, uint64 [n]: Σ weight[position] · (byte + 1) mod 2⁶⁴ with fixed random weights.

    Null hashes as the empty string.
    """
    parts = [np.zeros(0, np.uint64)]
    for start in range(0, len(strings), HASH_ROWS):
        parts.append(_hashes(strings.slice(start, HASH_ROWS)))
    return np.concatenate(parts)


def _hashes(strings: pa.Array) -> NDArray[np.uint64]:
    text = strings.cast(pa.large_string()).fill_null("")
    _, offset_bytes, data = text.buffers()
    offsets = np.frombuffer(offset_bytes, np.int64)[text.offset : text.offset + len(text) + 1]
    if data is None or offsets[0] == offsets[-1]:
        return np.zeros(len(text), np.uint64)
    values = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
    starts = offsets - offsets[0]
    lengths = np.diff(starts)
    positions = np.arange(len(values)) - np.repeat(starts[:-1], lengths)
    weights = np.random.Philox(key=np.array([1, 0], np.uint64)).random_raw(int(lengths.max()))
    terms = (values.astype(np.uint64) + np.uint64(1)) * weights[positions]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    return sums[starts[1:]] - sums[starts[:-1]]
