"""Looking up ahead: each look-up opens the index anew, so it is done for many blocks at once."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from paraclip_core.paraphrase.protocol import GenerationCache

__all__ = ["LookAhead"]


class LookAhead:
    """Answers from a cache, those that were announced from memory.

    What was not found ahead is looked up again when it is needed: another process may have been answered meanwhile.
    """

    def __init__(self, cache: GenerationCache) -> None:
        """Nothing is announced yet."""
        self._cache = cache
        self._rows: dict[bytes, int] = {}
        self._completions: pa.Array | pa.ChunkedArray = pa.array([], pa.list_(pa.string()))

    def expect(self, keys: pa.FixedSizeBinaryArray) -> None:
        """Announce the keys that will be asked for next; they replace those announced before."""
        found = self._cache.lookup(keys)
        self._rows = {key: row for row, key in enumerate(found.column("key").to_pylist())}
        self._completions = found.column("completions").combine_chunks()

    def lookup(self, keys: pa.FixedSizeBinaryArray) -> dict[bytes, Sequence[str]]:
        """Raw answers of the known ones among different keys."""
        wanted: list[bytes] = keys.to_pylist()
        here = [key for key in wanted if key in self._rows]
        taken = self._completions.take(pa.array([self._rows[key] for key in here], pa.int64()))
        known: dict[bytes, Sequence[str]] = dict(zip(here, taken.to_pylist(), strict=True))
        if len(here) < len(wanted):
            rest = pa.array([key for key in wanted if key not in self._rows], keys.type)
            assert isinstance(rest, pa.FixedSizeBinaryArray)
            found = self._cache.lookup(rest)
            known |= zip(found.column("key").to_pylist(), found.column("completions").to_pylist(), strict=True)
        return known
