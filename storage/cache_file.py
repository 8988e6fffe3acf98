"""The cache's DuckDB file: tables over append-only Parquet parts. It can always be made again from them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from paraclip_core.errors import ArtifactError
from storage.duckdb_file import attached, environment_error, opened
from storage.files import storage_error
from storage.parts import PartFolder, TornPart, order_of

__all__ = ["GENERATIONS", "PARTS", "VERDICTS", "CacheFile", "CacheTable"]

log = logging.getLogger(__name__)

LAYOUT = 6
"""Version of the tables; a file of an earlier one is deleted and made again."""
NAME = "cache"
GROUP_ROWS = 500_000


@dataclass(frozen=True)
class CacheTable:
    """A table of the file. Beside `columns` it has `part`, the id of the part that a row comes from."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    schema: pa.Schema
    """What every part has; what else it holds is its writer's affair."""


KEY = pa.binary(16)
ACCEPTED = pa.struct([("answer", pa.string()), ("tokens", pa.list_(pa.uint16())), ("similarity", pa.float32())])
GENERATIONS = CacheTable(
    "generations",
    ("key", "completions"),
    ("key",),
    pa.schema(
        [
            pa.field("key", KEY, nullable=False),
            pa.field("step", pa.int8(), nullable=False),
            pa.field("attempt", pa.int16(), nullable=False),
            pa.field("model", pa.string(), nullable=False),
            pa.field("prompt", pa.string(), nullable=False),
            pa.field("completions", pa.list_(pa.string()), nullable=False),
        ]
    ),
)
VERDICTS = CacheTable(
    "verdicts",
    ("generation", "parent", "gates", "accepted", "answer", "reason", "detail", "similarity"),
    ("generation", "parent", "gates"),
    pa.schema(
        [
            pa.field("generation", KEY, nullable=False),
            pa.field("parent", KEY, nullable=False),
            pa.field("gates", KEY, nullable=False),
            pa.field("accepted", pa.list_(ACCEPTED), nullable=False),
            pa.field("answer", pa.string()),
            pa.field("reason", pa.string()),
            pa.field("detail", pa.string()),
            pa.field("similarity", pa.float32()),
        ]
    ),
)

CREATE = """
    CREATE OR REPLACE TABLE cache.{table} AS SELECT {plain}, 0::INTEGER AS part FROM plain;
    CREATE OR REPLACE TABLE cache.{table}_parts (id INTEGER, number BIGINT, name VARCHAR, rows BIGINT);
"""
MARK = "CREATE TABLE cache.schema_migrations AS SELECT ?::INTEGER AS version, 'tables over parts' AS name"
INDEXED = "SELECT name, sum(rows)::BIGINT FROM cache.{table}_parts GROUP BY name"
RENAME = "UPDATE cache.{table}_parts SET name = $new, number = $number WHERE list_contains($old, name)"
# A folder above the cache may be called `key=1` and is no column.
PARTS = """
    read_parquet($files, filename = true, file_row_number = true, hive_partitioning = false, union_by_name = true)
"""
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
DIGESTS = """
    SELECT p.name, p.rows, coalesce(t.rows, 0), coalesce(t.digest, 0)
    FROM (SELECT name, sum(rows)::BIGINT AS rows FROM cache.{table}_parts GROUP BY name) AS p LEFT JOIN (
        SELECT p.name, count(*) AS rows, bit_xor(hash({plain})) AS digest
        FROM cache.{table} AS t JOIN cache.{table}_parts AS p ON p.id = t.part GROUP BY p.name
    ) AS t USING (name)
"""


class CacheFile:
    """The file ``generations.duckdb`` of one cache folder. Use it while holding the cache's lock."""

    def __init__(self, folder: Path, tables: Sequence[tuple[CacheTable, PartFolder]]) -> None:
        """`tables` says which table is made from which parts."""
        self.path, self.tables = folder / "generations.duckdb", tables

    def catch_up(self) -> None:
        """Let the tables have exactly what the parts have; a damaged file is made again.

        Raises:
            LockedError: another program keeps the file open.
            ArtifactError: the disk is full, the folder read-only, or the file of a later release.
        """
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
            raise environment_error(error, self.path) or ArtifactError(
                f"{self.path} cannot be used: {error}"
            ) from error

    def check(self) -> None:
        """See that a file that cannot be written can be read.

        Raises:
            ArtifactError: there is none, or it is damaged or of another release.
        """
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
        """Attach the file to a connection, to be read.

        Raises:
            ArtifactError: what is read in the block is damaged; the file is then deleted, to be made again.
        """
        try:
            with attached(con, self.path, NAME, read_only=True):
                yield
        except duckdb.Error as error:
            if "Corrupt database file" not in str(error):
                raise
            with suppress(ArtifactError):
                self.delete()
            raise ArtifactError(
                f"{self.path} is damaged ({error}); run again, it is made again from its parts"
            ) from error

    @contextmanager
    def empty(self, con: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Attach empty tables."""
        with attached(con, ":memory:", NAME):
            self._create(con)
            yield

    def digests(self) -> dict[str, tuple[int, ...]]:
        """How many rows each part has, how many of them count, and a hash over those.

        Raises:
            duckdb.Error: the file is damaged.
        """
        counted: dict[str, tuple[int, ...]] = {}
        with opened(self.path, NAME, read_only=True) as con:
            for table, _ in self.tables:
                counted |= {name: tuple(counts) for name, *counts in con.execute(_sql(DIGESTS, table)).fetchall()}
        return counted

    def delete(self) -> None:
        """Delete the file, what a kill left of its memory on disk, and what earlier releases kept beside it."""
        try:
            for name in (f"{self.path.name}.tmp", "generations.index", "judged"):
                if (self.path.parent / name).exists():
                    shutil.rmtree(self.path.parent / name)
            # Last, as its layout says that the others may still be there; a log without its file would be replayed.
            for suffix in (".wal", ""):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, self.path) from error

    def _follow_all(self) -> None:
        with self._opened() as con:
            for table, folder in self.tables:
                _follow(con, table, folder)

    @contextmanager
    def _opened(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The file, writable, with all tables."""
        with opened(self.path, NAME) as con:
            layout = _layout(con)
            if layout > LAYOUT:
                raise ArtifactError(
                    f"the cache's index has layout {layout}, this release knows up to {LAYOUT}; install the later "
                    "paraclip, or delete generations.duckdb to have it rebuilt from its segments"
                )
            if layout == LAYOUT:
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
    con.execute(_sql(CREATE, table))
    con.unregister("plain")


def _indexed(con: duckdb.DuckDBPyConnection, table: CacheTable) -> set[str]:
    """Names of the parts whose rows are in a table."""
    return {name for name, _ in con.execute(_sql(INDEXED, table)).fetchall()}


def _follow(con: duckdb.DuckDBPyConnection, table: CacheTable, folder: PartFolder) -> None:
    """Let a table have exactly what its parts have."""
    replacement, indexed = folder.replacement(), _indexed(con, table)
    if replacement and indexed.issuperset(replacement.old):
        # The big one has the same rows in the same order, so the same ones count.
        number, _ = order_of(replacement.new)
        con.execute(_sql(RENAME, table), {"new": replacement.new, "number": number, "old": replacement.old})
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
    first = con.execute(_sql("SELECT coalesce(max(id), 0) + 1 FROM cache.{table}_parts", table)).fetchall()[0][0]
    ids, numbers = range(first, first + len(rows)), [order_of(name)[0] for name in rows]
    arriving = {"id": ids, "number": numbers, "name": list(rows), "rows": list(rows.values()), "path": files}
    con.register("arriving", pa.table(arriving))
    con.execute("BEGIN")
    if indexed and min(map(order_of, rows)) < max(map(order_of, indexed)):
        con.execute(_sql(SUPERSEDE, table), {"files": files})
    con.execute(_sql(INSERT, table), {"files": files})
    con.execute(_sql(NOTE, table))
    con.execute("COMMIT")
    con.unregister("arriving")


def _sql(template: str, table: CacheTable) -> str:
    return template.format(
        table=table.name,
        plain=", ".join(table.columns),
        columns=", ".join(f"f.{name}" for name in table.columns),
        key=", ".join(f"f.{name}" for name in table.key),
        same=" AND ".join(f"f.{name} = t.{name}" for name in table.key),
        arriving=ARRIVING,
    )
