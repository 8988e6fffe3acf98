"""The generation cache: every completion that was ever paid for, and every verdict on one, as DuckDB tables.

Truth is the append-only Parquet parts in ``<cache>/segments/`` and ``<cache>/verdicts/``. The DuckDB file
``<cache>/generations.duckdb`` has their rows as tables and catches up whenever it is used, so a kill between the two
loses nothing and the file may be deleted.
Where a key comes more than once, the row of the part with the lowest number counts (numbers are given under a lock, so
that is the one that was written first), and in it the first row; building the file again does not change that.

Everything here raises ArtifactError where a disk fails, LockedError where another program keeps the file open.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from paraclip.storage.duckdb_file import attached, connect, environment_error, opened
from paraclip.storage.files import storage_errors
from paraclip.storage.locks import lock
from paraclip.storage.parts import PartFolder, PartMirror, TornPart, check_columns, order_of
from paraclip_core.errors import ArtifactError

log = logging.getLogger(__name__)

LAYOUT = 1
"""Version of the tables; a file of another one is deleted and made again."""
NAME = "cache"
GROUP_ROWS = 500_000
PART_ROWS = 100_000


@dataclass(frozen=True)
class CacheTable:
    """A table of the file. Beside `columns` it has `part`, the id of the part that a row comes from."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    schema: pa.Schema
    """What every part has; what else it holds is its writer's affair."""


def _schema(required: Mapping[str, pa.DataType], optional: Mapping[str, pa.DataType]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, name in optional) for name, kind in {**required, **optional}.items()])


KEY, TEXT = pa.binary(16), pa.string()
ACCEPTED = pa.struct([("answer", TEXT), ("tokens", pa.list_(pa.uint16())), ("similarity", pa.float32())])
REQUEST = {"key": KEY, "step": pa.int8(), "attempt": pa.int16(), "model": TEXT, "prompt": TEXT}
ANSWERED = REQUEST | {"completions": pa.list_(TEXT)}
VERDICT_KEY = {"generation": KEY, "parent": KEY, "gates": KEY}
REASONS = {"answer": TEXT, "reason": TEXT, "detail": TEXT, "similarity": pa.float32()}
GENERATIONS = CacheTable("generations", ("key", "completions"), ("key",), _schema(ANSWERED, {}))
VERDICTS = CacheTable(
    "verdicts",
    (*VERDICT_KEY, "accepted", *REASONS),
    tuple(VERDICT_KEY),
    _schema(VERDICT_KEY | {"accepted": pa.list_(ACCEPTED)}, REASONS),
)

CREATE = """
    CREATE OR REPLACE TABLE cache.{table} AS SELECT {plain}, 0::INTEGER AS part FROM plain;
    CREATE OR REPLACE TABLE cache.{table}_parts (id INTEGER, number BIGINT, name VARCHAR, rows BIGINT);
"""
MARK = "CREATE TABLE cache.schema_migrations AS SELECT ?::INTEGER AS version, 'tables over parts' AS name"
RENAME = "UPDATE cache.{table}_parts SET name = $new, number = $number WHERE list_contains($old, name)"
# A folder above the cache may be called `key=1` and is no column.
PARTS = "read_parquet($files, filename = true, file_row_number = true, hive_partitioning = false, union_by_name = true)"
ARRIVING = f"{PARTS} AS f JOIN arriving AS a ON a.path = f.filename"
SUPERSEDE = """
    DELETE FROM cache.{table} AS t USING
        (SELECT {key}, min(ROW(a.number, a.name)) AS turn FROM {arriving} GROUP BY {key}) AS f,
        cache.{table}_parts AS p
    WHERE {same} AND p.id = t.part AND ROW(p.number, p.name) > f.turn
"""
INSERT = """
    INSERT INTO cache.{table}
    SELECT {columns}, part FROM (
        SELECT {columns}, a.id AS part,
            row_number() OVER (PARTITION BY {key} ORDER BY a.number, a.name, f.file_row_number) AS turn
        FROM {arriving}
    ) AS f ANTI JOIN cache.{table} AS t ON {same}
    WHERE turn = 1
"""
NOTE = "INSERT INTO cache.{table}_parts SELECT id, number, name, rows FROM arriving"


class GenerationStore:
    """A generation cache in one folder; any number of processes and threads may use it at once."""

    def __init__(self, cache_folder: Path | str, mirror: PartMirror | None = None) -> None:
        """`cache_folder` is made when something is first appended; `mirror` shares it with other machines."""
        self.mirror = mirror
        self.folder = Path(cache_folder).absolute()
        self.parts = PartFolder(self.folder / "segments", GENERATIONS.schema)
        self.verdict_parts = PartFolder(self.folder / "verdicts", VERDICTS.schema)
        self.file = CacheFile(self.folder, ((GENERATIONS, self.parts), (VERDICTS, self.verdict_parts)))
        self._behind = False

    def append(self, generations: pa.Table) -> None:
        """Keep generations; on return they are on disk and survive a kill. The DuckDB file follows later.

        The table has the columns of `GENERATIONS.schema`, or else ArtifactError names one; others are kept, too.
        """
        self._append(self.parts, generations)

    def append_verdicts(self, verdicts: pa.Table) -> None:
        """Keep verdicts, as :meth:`append` does."""
        self._append(self.verdict_parts, verdicts)

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

    @contextmanager
    def attached(self, con: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Attach everything to a connection, as tables `cache.generations` and `cache.verdicts` that can be read.

        The cache's lock is held until the end of the block, so keep it to a few joins and append nothing in it. Where
        there is no cache yet, both tables are empty.
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
        """Columns `key` binary(16) and `completions` list<string> of those `keys` that are there, each once, unordered.

        The keys are binary(16) without nulls. Many are better joined with `attached`.
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


class CacheFile:
    """The file ``generations.duckdb`` of one cache folder. Use it while holding the cache's lock."""

    def __init__(self, folder: Path, tables: Sequence[tuple[CacheTable, PartFolder]]) -> None:
        """`tables` says which table is made from which parts."""
        self.path, self.tables = folder / "generations.duckdb", tables

    def catch_up(self) -> None:
        """Let the tables have exactly what the parts have; a damaged file is made again."""
        try:
            try:
                self._follow_all()
            except duckdb.Error as error:
                if environment_error(error, self.path):
                    raise
                log.warning("%s is damaged and made again from its parts: %s", self.path, error)
                self.delete()
                self._follow_all()
        except duckdb.Error as error:
            raise environment_error(error, self.path) or ArtifactError(f"{self.path} is unusable: {error}") from error

    def check(self) -> None:
        """See that a file that cannot be written can be read."""
        if not self.path.exists():
            raise ArtifactError(f"{self.path.parent} is read-only and has no index; choose a writable root")
        try:
            with opened(self.path, NAME, read_only=True) as con:
                if (layout := _layout(con)) != LAYOUT:
                    raise ArtifactError(
                        f"the cache's index has layout {layout}, this release reads {LAYOUT}; look something up in it "
                        "once where its folder can be written"
                    )
                for table, folder in self.tables:
                    if behind := len(set(folder.names()) - _indexed(con, table)):
                        log.warning("%s is read-only: %s segments are not in its index", folder.folder, behind)
        except duckdb.Error as error:
            raise ArtifactError(f"{self.path} cannot be read: {error}") from error

    @contextmanager
    def attached(self, con: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Attach the file to a connection, to be read."""
        try:
            with attached(con, self.path, NAME, read_only=True):
                yield
        except duckdb.Error as error:
            if "Corrupt database file" not in str(error):
                raise
            with suppress(ArtifactError):
                self.delete()
            raise ArtifactError(f"{self.path} is damaged ({error}); run again to rebuild it from its parts") from error

    @contextmanager
    def empty(self, con: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Attach empty tables."""
        with attached(con, ":memory:", NAME):
            self._create(con)
            yield

    def delete(self) -> None:
        """Delete the file, and what a kill left of its memory on disk."""
        with storage_errors(self.path):
            if (memory := self.path.with_name(f"{self.path.name}.tmp")).exists():
                shutil.rmtree(memory)
            # The log first: without its file it would be replayed.
            for suffix in (".wal", ""):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _follow_all(self) -> None:
        with self._opened() as con:
            for table, folder in self.tables:
                _follow(con, table, folder)

    @contextmanager
    def _opened(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The file, writable, with all tables."""
        with opened(self.path, NAME) as con:
            if (layout := _layout(con)) == LAYOUT:
                yield con
                return
        if layout:
            log.info("the cache's index has layout %s and is made again from its parts", layout)
        self.delete()
        with opened(self.path, NAME) as con:
            self._create(con)
            yield con

    def _create(self, con: duckdb.DuckDBPyConnection) -> None:
        con.execute("BEGIN")
        for table, _ in self.tables:
            _clear(con, table)
        con.execute(MARK, [LAYOUT])
        con.execute("COMMIT")


def _layout(con: duckdb.DuckDBPyConnection) -> int:
    """Layout of the attached file; 0 for a new one."""
    try:
        return con.execute("SELECT coalesce(max(version), 0) FROM cache.schema_migrations").fetchall()[0][0]
    except duckdb.CatalogException:
        return 0


def _clear(con: duckdb.DuckDBPyConnection, table: CacheTable) -> None:
    con.register("plain", table.schema.empty_table())
    con.execute(table_sql(CREATE, table))
    con.unregister("plain")


def _indexed(con: duckdb.DuckDBPyConnection, table: CacheTable) -> set[str]:
    """Names of the parts whose rows are in a table."""
    rows = con.execute(table_sql("SELECT DISTINCT name FROM cache.{table}_parts", table)).fetchall()
    return {name for (name,) in rows}


def _follow(con: duckdb.DuckDBPyConnection, table: CacheTable, folder: PartFolder) -> None:
    """Let a table have exactly what its parts have."""
    replacement, indexed = folder.replacement(), _indexed(con, table)
    if replacement and indexed.issuperset(replacement.old):
        # The big one has the same rows in the same order, so the same ones count.
        number, _ = order_of(replacement.new)
        con.execute(table_sql(RENAME, table), {"new": replacement.new, "number": number, "old": replacement.old})
        indexed = _indexed(con, table)
    if gone := indexed.difference(folder.names()):
        log.warning("%s parts of %s are gone; their table is made again from the others", len(gone), folder.folder)
        con.execute("BEGIN")
        _clear(con, table)
        con.execute("COMMIT")
        indexed = set()
    group: dict[str, int] = {}
    for name in folder.names():
        if name in indexed:
            continue
        try:
            group[name] = folder.footer(name).rows
        except TornPart as error:
            folder.set_aside(error)
        if sum(group.values()) >= GROUP_ROWS:
            _insert(con, table, folder, group)
            group = {}
    if group:
        _insert(con, table, folder, group)
    folder.settle()


def _insert(con: duckdb.DuckDBPyConnection, table: CacheTable, folder: PartFolder, rows: dict[str, int]) -> None:
    """Insert the rows of some parts, all or none of them."""
    indexed = _indexed(con, table)
    files = [str(folder.folder / name) for name in rows]
    first = con.execute(table_sql("SELECT coalesce(max(id), 0) + 1 FROM cache.{table}_parts", table)).fetchall()[0][0]
    ids, numbers = range(first, first + len(rows)), [order_of(name)[0] for name in rows]
    arriving = {"id": ids, "number": numbers, "name": list(rows), "rows": list(rows.values()), "path": files}
    con.register("arriving", pa.table(arriving))
    con.execute("BEGIN")
    if indexed and min(map(order_of, rows)) < max(map(order_of, indexed)):
        con.execute(table_sql(SUPERSEDE, table), {"files": files})
    con.execute(table_sql(INSERT, table), {"files": files})
    con.execute(table_sql(NOTE, table))
    con.execute("COMMIT")
    con.unregister("arriving")


def table_sql(template: str, table: CacheTable) -> str:
    """A statement about a table: `plain` names its columns, `key` those of its key."""
    return template.format(
        table=table.name,
        plain=", ".join(table.columns),
        columns=", ".join(f"f.{name}" for name in table.columns),
        key=", ".join(f"f.{name}" for name in table.key),
        same=" AND ".join(f"f.{name} = t.{name}" for name in table.key),
        arriving=ARRIVING,
    )
