"""The generation cache: every completion that was ever paid for, and every verdict on one, as DuckDB tables.

Truth is the append-only Parquet parts in ``<cache>/segments/`` and ``<cache>/verdicts/``. The DuckDB file
``<cache>/generations.duckdb`` has their rows as tables and catches up whenever it is used, so a kill between the two
loses nothing and the file may be deleted.
Where a key comes more than once, the row of the part with the lowest number counts (numbers are given under a lock, so
that is the one that was written first), and in it the first row; building the file again does not change that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from paraclip_core.errors import ArtifactError
from storage.cache_file import GENERATIONS, VERDICTS, CacheFile
from storage.duckdb_file import connect
from storage.locks import lock
from storage.parts import PartFolder, check_columns

if TYPE_CHECKING:
    from storage.segment_mirror import SegmentMirror

__all__ = ["GenerationStore"]

PART_ROWS = 100_000


class GenerationStore:
    """A generation cache in one folder; any number of processes and threads may use it at once."""

    def __init__(self, cache_folder: Path | str, mirror: SegmentMirror | None = None) -> None:
        """`cache_folder` is made when something is first appended; `mirror` shares it with other machines."""
        self.mirror = mirror
        self.folder = Path(cache_folder).absolute()
        self.parts = PartFolder(self.folder / "segments", GENERATIONS.schema)
        self.verdict_parts = PartFolder(self.folder / "verdicts", VERDICTS.schema)
        self.file = CacheFile(self.folder, ((GENERATIONS, self.parts), (VERDICTS, self.verdict_parts)))
        self._behind = False

    def append(self, generations: pa.Table) -> None:
        """Keep generations; on return they are on disk and survive a kill. The DuckDB file follows later.

        Args:
            generations: any table with the columns of `storage.cache_file.GENERATIONS`; the others are kept, too.

        Raises:
            ArtifactError: a column is missing or wrong, the disk is full, or the folder read-only.
        """
        self._append(self.parts, generations)

    def append_verdicts(self, verdicts: pa.Table) -> None:
        """Keep verdicts, as :meth:`append` does."""
        self._append(self.verdict_parts, verdicts)

    @contextmanager
    def attached(self, con: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Attach everything to a connection, as tables `cache.generations` and `cache.verdicts` that can be read.

        The cache's lock is held until the end of the block, so keep it to a few joins and append nothing in it. Where
        there is no cache yet, both tables are empty.

        Raises:
            ArtifactError: the cache cannot be read or written.
            LockedError: another program keeps its file open.
        """
        if self.mirror is not None:
            self.mirror.pull()
        if not self.exists():
            with self.file.empty(con):
                yield
        elif not os.access(self.folder, os.W_OK):
            self.file.check()
            with self.file.attached(con):
                yield
        else:
            with self.locked():
                self.file.catch_up()
                self._behind = False
                with self.file.attached(con):
                    yield

    @contextmanager
    def tables(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection of its own to which everything is attached."""
        with connect(self.file.path) as con, self.attached(con):
            yield con

    def lookup(self, keys: pa.FixedSizeBinaryArray | pa.ChunkedArray) -> pa.Table:
        """Find the answers to a few keys; many are better joined with `attached`.

        Args:
            keys: binary(16) without nulls; a key that comes twice is looked up once.

        Returns:
            Columns `key` binary(16) and `completions` list<string> of the keys that are there, each once, in any order.

        Raises:
            ArtifactError: the cache cannot be read or written.
        """
        schema = pa.schema([GENERATIONS.schema.field(name) for name in GENERATIONS.columns])
        if keys.type != schema.field("key").type or keys.null_count:
            raise ArtifactError(f"keys are {keys.type} with {keys.null_count} nulls; expected binary(16) without nulls")
        with self.tables() as con:
            con.register("asked", pa.table({"key": keys}))
            query = "SELECT key, completions FROM cache.generations SEMI JOIN asked USING (key)"
            return con.sql(query).to_arrow_table().cast(schema)

    def refresh(self) -> None:
        """Let the DuckDB file catch up with the parts."""
        with self.tables():
            pass

    def rebuild(self) -> None:
        """Throw the DuckDB file away and make it again from the parts."""
        with self.locked():
            self.file.delete()
        self.refresh()

    def close(self) -> None:
        """Let the DuckDB file catch up with what was appended here; the store may be used again."""
        self.parts.sweep()
        self.verdict_parts.sweep()
        if self._behind:
            self.refresh()
        if self.mirror is not None:
            self.mirror.push_rest()

    def exists(self) -> bool:
        """Whether anything was ever appended."""
        return self.parts.folder.is_dir() or self.verdict_parts.folder.is_dir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other writer of this cache out; hold it briefly."""
        with lock(self.folder / "generations.lock"):
            yield

    def _append(self, folder: PartFolder, table: pa.Table) -> None:
        check_columns(table, folder.schema)
        if not table.num_rows:
            return
        slices = [table.slice(start, PART_ROWS) for start in range(0, table.num_rows, PART_ROWS)]
        with ThreadPoolExecutor(min(len(slices), os.cpu_count() or 1)) as pool:
            drafts = list(pool.map(folder.draft, slices))
        with self.locked():
            published = folder.publish(drafts)
        self._behind = True
        if self.mirror is not None:
            self.mirror.push(f"{folder.folder.name}/{name}" for name in published)
