"""The generation cache: every completion that was ever paid for, found again by its request's key.

Truth is the Parquet segments under ``<cache>/segments/``. The DuckDB file ``<cache>/generations.duckdb``, with the
folder ``generations.index`` beside it, is an index over them that catches up whenever it is asked, so a kill between
the two loses nothing and both may be deleted.
Where a key was answered more than once, the answer of the segment with the lowest number counts (numbers are given
under a lock, so that is the one that was kept first), and in it the first row; deleting or rebuilding the index does
not change that.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import duckdb
import numpy as np
import pyarrow as pa

from paraclip_core.errors import ArtifactError
from storage.duckdb_file import environment_error
from storage.generation_index import CacheGroup, GenerationIndex, TornIndex
from storage.locks import lock
from storage.segments import INDEXED, SegmentFolder, TornSegment, check_generations, digest_of

if TYPE_CHECKING:
    from storage.segment_mirror import SegmentMirror

__all__ = ["CacheGroup", "CacheStats", "GenerationStore"]

log = logging.getLogger(__name__)

T = TypeVar("T")

SEGMENT_ROWS = 100_000
INDEX_ROWS = 500_000
GROUP_ROWS = 200_000
FRESH_BYTES = 128 << 20


@dataclass(frozen=True)
class CacheStats:
    """What a generation cache holds."""

    rows: int
    """Generations, those that repeat a key included."""
    keys: int
    """Different request keys."""
    segments: int
    torn: int
    """Segments that were damaged and set aside."""
    bytes: int
    """Size of all segments."""
    groups: tuple[CacheGroup, ...]
    """Rows and keys by step, model and prompt."""


class GenerationStore:
    """A generation cache in one folder; any number of processes and threads may use it at once."""

    def __init__(self, cache_folder: Path | str, mirror: SegmentMirror | None = None) -> None:
        """`cache_folder` is made when something is first appended; `mirror` shares it with other machines."""
        self.mirror = mirror
        self.folder = Path(cache_folder).absolute()
        self.segments = SegmentFolder(self.folder / "segments")
        self.index_path = self.folder / "generations.duckdb"
        self.published = 0
        """Segments that were published here so far."""
        self._behind = 0
        self._fresh: dict[str, pa.Table] = {}
        self._fresh_bytes = 0

    def lookup(self, keys: pa.FixedSizeBinaryArray | pa.ChunkedArray) -> pa.Table:
        """Find answers in bulk; never call it key by key, as each call opens the index anew.

        Args:
            keys: binary(16) without nulls; a key that comes twice is looked up once.

        Returns:
            Columns `key` binary(16) and `completions` list<string> of the known keys, each once, in any order.

        Raises:
            ArtifactError: the cache cannot be read or written.
        """
        wanted = _distinct(keys)
        found = self.with_index(lambda index: index.lookup(wanted, self.segments.names())) if len(wanted) else None
        return pa.schema([INDEXED.field("key"), INDEXED.field("completions")]).empty_table() if found is None else found

    def append(self, generations: pa.Table) -> None:
        """Keep generations; on return they are on disk and survive a kill.

        The index follows at the latest with the next lookup; every 500,000 rows it follows at once.

        Args:
            generations: any table with the columns `storage.segments.INDEXED`; the others are kept, too.

        Raises:
            ArtifactError: a column is missing or wrong, the disk is full, or the folder read-only.
        """
        check_generations(generations)
        if not generations.num_rows:
            return
        starts = range(0, generations.num_rows, SEGMENT_ROWS)
        parts = [generations.slice(start, SEGMENT_ROWS) for start in starts]
        with ThreadPoolExecutor(min(len(parts), os.cpu_count() or 1)) as pool:
            drafts = list(pool.map(self.segments.draft, parts))
        with self.locked():
            published = self.segments.publish(drafts)
            self.published += len(published)
            self._remember(published, {draft.digest: part for draft, part in zip(drafts, parts, strict=True)})
        if self.mirror is not None:
            self.mirror.push(published)
        self._behind += generations.num_rows
        if self._behind >= INDEX_ROWS:
            self.refresh()

    def _remember(self, names: list[str], parts: dict[str, pa.Table]) -> None:
        """Spare the index to read again what was written here a moment ago."""
        for name in names:
            table = parts[digest_of(name)].select(INDEXED.names)
            self._fresh_bytes += table.nbytes
            if self._fresh_bytes <= FRESH_BYTES:
                self._fresh[name] = table

    def refresh(self) -> None:
        """Let the index catch up with the segments."""
        self.with_index(lambda index: None)

    def rebuild(self) -> None:
        """Throw the index away and make it again from the segments."""
        with self.locked():
            GenerationIndex.delete(self.index_path)
        self.refresh()

    def stats(self) -> CacheStats:
        """Count what is there."""
        found = self.with_index(lambda index: (index.counts(), index.groups()))
        (rows, keys), groups = found or ((0, 0), ())
        segments = self.segments
        return CacheStats(rows, keys, len(segments.names()), segments.torn(), segments.bytes(), groups)

    def close(self) -> None:
        """Let the index catch up with what was appended here; the store may be used again."""
        self.segments.sweep()
        if self._behind:
            self.refresh()
        if self.mirror is not None:
            self.mirror.push_rest()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other writer of this cache out; hold it briefly."""
        with lock(self.folder / "generations.lock"):
            yield

    def with_index(self, use: Callable[[GenerationIndex], T]) -> T | None:
        """Call `use`, under the lock, with an index that knows every segment; None where there is no cache yet.

        Raises:
            ArtifactError: the cache cannot be read or written.
        """
        if self.mirror is not None:
            self.mirror.pull()
        if not self.segments.folder.is_dir():
            return None
        if not os.access(self.folder, os.W_OK):
            return self._with_frozen_index(use)
        with self.locked():
            try:
                try:
                    return self._caught_up(use)
                except (duckdb.Error, TornIndex) as error:
                    if isinstance(error, duckdb.Error) and environment_error(error, self.index_path):
                        raise
                    log.warning("%s is damaged and made again from its segments: %s", self.index_path, error)
                    GenerationIndex.delete(self.index_path)
                    return self._caught_up(use)
            except (duckdb.Error, TornIndex) as error:
                known = environment_error(error, self.index_path) if isinstance(error, duckdb.Error) else None
                raise known or ArtifactError(f"{self.index_path} cannot be used: {error}") from error

    def _caught_up(self, use: Callable[[GenerationIndex], T]) -> T:
        with GenerationIndex.opened(self.index_path) as index:
            present, known = self.segments.names(), index.segments()
            gone = known.difference(present)
            if gone:
                if lost := gone.difference(self.segments.replaced()):
                    log.warning("%s segments of %s are gone", len(lost), self.segments.folder)
                index.drop(gone)
                known = index.segments()
            self._index([name for name in present if name not in known], index)
            self.segments.settle()
            self._behind = 0
            self._fresh.clear()
            self._fresh_bytes = 0
            return use(index)

    def _index(self, names: list[str], index: GenerationIndex) -> None:
        """Index segments in groups of bounded size, so that memory stays flat and a kill costs one group."""
        group: list[tuple[str, pa.Table]] = []
        for name in names:
            try:
                fresh = self._fresh.pop(name, None)
                group.append((name, self.segments.read(name) if fresh is None else fresh))
            except TornSegment as error:
                self.segments.set_aside(name, error)
            if sum(table.num_rows for _, table in group) >= GROUP_ROWS:
                index.add(group)
                group = []
        if group:
            index.add(group)

    def _with_frozen_index(self, use: Callable[[GenerationIndex], T]) -> T | None:
        """Use the index of a folder that cannot be written as it is."""
        if not self.index_path.exists():
            raise ArtifactError(f"{self.folder} is read-only and has no index; choose a writable root")
        try:
            with GenerationIndex.opened(self.index_path, read_only=True) as index:
                behind = len(set(self.segments.names()) - index.segments())
                if behind:
                    log.warning("%s is read-only: %s segments are not in its index", self.folder, behind)
                return use(index)
        except (duckdb.Error, TornIndex) as error:
            raise ArtifactError(f"{self.index_path} cannot be read: {error}") from error


def _distinct(keys: pa.FixedSizeBinaryArray | pa.ChunkedArray) -> pa.FixedSizeBinaryArray:
    if keys.type != INDEXED.field("key").type or keys.null_count:
        raise ArtifactError(f"keys are {keys.type} with {keys.null_count} nulls; expected binary(16) without nulls")
    whole = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
    if not len(whole):
        return whole
    # Sorting the first halves is twenty times faster than hashing the keys, and seldom finds two alike.
    halves = np.sort(np.frombuffer(whole.buffers()[1], dtype=np.uint64)[2 * whole.offset :][: 2 * len(whole) : 2])
    return whole.unique() if (halves[1:] == halves[:-1]).any() else whole
