"""Reading a whole generation cache: every segment against its name and layout, the index against the segments."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import duckdb

from storage.duckdb_file import CONFIG
from storage.generation_index import GenerationIndex, TornIndex, rows_digest
from storage.generations import GenerationStore
from storage.locks import lock
from storage.segments import INDEXED, TornSegment, parsed

__all__ = ["Verified", "verify_cache"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verified:
    """What was found in a generation cache."""

    segments: int
    """Sound segments."""
    rows: int
    """Rows of those."""
    torn: tuple[str, ...]
    """Segments that were found damaged now, and set aside."""
    torn_before: int
    """Segments that had been set aside before."""
    mended: tuple[str, ...]
    """Segments that the index knew otherwise, or not; they are indexed again."""

    @property
    def sound(self) -> bool:
        """Nothing was wrong."""
        return not self.torn and not self.mended


def verify_cache(store: GenerationStore) -> Verified:
    """Read everything; torn segments are set aside, and where the index differs it is mended.

    Raises:
        ArtifactError: the cache cannot be read or written.
    """
    if store.mirror is not None:
        store.mirror.pull()
    if not store.segments.folder.is_dir():
        return Verified(0, 0, (), 0, ())
    torn: list[str] = []
    expected: dict[str, tuple[int, int]] = {}
    before = store.segments.torn()
    # Segments must not be joined while they are read.
    with lock(store.folder / "compaction.lock"), duckdb.connect(":memory:", config=CONFIG) as con:
        for name in store.segments.names():
            try:
                expected[name] = rows_digest(con, parsed(store.segments.read_bytes(name)).select(INDEXED.names))
            except TornSegment as error:
                with store.locked():
                    store.segments.set_aside(name, error)
                torn.append(name)
        mended = store.with_index(lambda index: _mended(store, index, expected)) or ()
    return Verified(len(expected), sum(rows for rows, _ in expected.values()), tuple(torn), before, mended)


def _mended(store: GenerationStore, index: GenerationIndex, expected: dict[str, tuple[int, int]]) -> tuple[str, ...]:
    present = set(store.segments.names())
    try:
        found = index.digests()
        wrong = sorted(name for name, digest in expected.items() if name in present and found.get(name) != digest)
        if wrong:
            log.warning("the index differs from %s segments, which are indexed again", len(wrong))
            index.drop(set(wrong))
            _index(store, index, wrong)
        index.check()
    except TornIndex as error:
        log.warning("the index is damaged and made again: %s", error)
        wrong = sorted(present.intersection(expected))
        index.clear()
        _index(store, index, wrong)
    return tuple(wrong)


def _index(store: GenerationStore, index: GenerationIndex, names: Iterable[str]) -> None:
    for name in names:
        index.add([(name, store.segments.read(name))])
