"""The cache's DuckDB file: tables over append-only Parquet parts. It can always be made again from them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from paraclip_core.errors import ArtifactError
from storage.atomic import storage_error
from storage.duckdb_file import attached, environment_error, opened
from storage.parts import PartFolder, TornPart, number_of, order_of

__all__ = ["GENERATIONS", "VERDICTS", "CacheFile", "CacheTable"]

log = logging.getLogger(__name__)

LAYOUT = 6
"""Version of the tables; a file of another one is deleted and made again. Earlier releases have 1 to 5."""
NAME = "cache"
GROUP_ROWS = 500_000


@dataclass(frozen=True)
class CacheTable:
    """A table of the file, and the parts that it is made from."""

    name: str
    schema: pa.Schema
    """Columns that every part has; what else a part holds is its writer's affair."""
    key: tuple[str, ...]
    columns: dict[str, str]
    """Columns of the table and their SQL types."""


ACCEPTED = pa.struct([("answer", pa.string()), ("tokens", pa.list_(pa.uint16())), ("similarity", pa.float32())])
GENERATIONS = CacheTable(
    "generations",
    pa.schema(
        [
            pa.field("key", pa.binary(16), nullable=False),
            pa.field("step", pa.int8(), nullable=False),
            pa.field("attempt", pa.int16(), nullable=False),
            pa.field("model", pa.string(), nullable=False),
            pa.field("prompt", pa.string(), nullable=False),
            pa.field("completions", pa.list_(pa.string()), nullable=False),
        ]
    ),
    ("key",),
    {"key": "BLOB", "completions": "VARCHAR[]"},
)
VERDICTS = CacheTable(
    "verdicts",
    pa.schema(
        [
            pa.field("generation", pa.binary(16), nullable=False),
            pa.field("parent", pa.binary(16), nullable=False),
            pa.field("gates", pa.binary(16), nullable=False),
            pa.field("accepted", pa.list_(ACCEPTED), nullable=False),
            pa.field("answer", pa.string()),
            pa.field("reason", pa.string()),
            pa.field("detail", pa.string()),
            pa.field("similarity", pa.float32()),
        ]
    ),
    ("generation", "parent", "gates"),
    {
        "generation": "BLOB",
        "parent": "BLOB",
        "gates": "BLOB",
        "accepted": "STRUCT(answer VARCHAR, tokens USMALLINT[], similarity FLOAT)[]",
        "answer": "VARCHAR",
        "reason": "VARCHAR",
        "detail": "VARCHAR",
        "similarity": "FLOAT",
    },
)

CREATE = """
    CREATE OR REPLACE TABLE cache.{table} ({types}, part INTEGER);
    CREATE OR REPLACE TABLE cache.{table}_parts (id INTEGER, number BIGINT, name VARCHAR, rows BIGINT);
"""
MARK = "CREATE TABLE cache.schema_migrations AS SELECT {layout} AS version, 'tables over parts' AS name"
# A folder above the cache may be called `key=1` and is no column.
FILES = """
    read_parquet($files, filename = true, file_row_number = true, hive_partitioning = false, union_by_name = true) f
    JOIN arriving a ON a.path = f.filename
"""
# Rows of parts that come behind the ones that arrive; without any, those are the last.
SUPERSEDE = """
    DELETE FROM cache.{table} AS t USING
        (SELECT {key}, min(ROW(a.number, a.name)) AS turn FROM {files} GROUP BY {key}) AS f, cache.{table}_parts AS p
    WHERE {same} AND p.id = t.part AND ROW(p.number, p.name) > f.turn
"""
INSERT = """
    INSERT INTO cache.{table}
    SELECT {columns}, part FROM (
        SELECT {columns}, a.id AS part,
            row_number() OVER (PARTITION BY {key} ORDER BY a.number, a.name, f.file_row_number) AS turn
        FROM {files}
    ) AS f ANTI JOIN cache.{table} AS t ON {same}
    WHERE turn = 1
"""


class CacheFile:
    """The file ``generations.duckdb`` of one cache folder. Use it while holding the cache's lock."""

    def __init__(self, folder: Path, tables: Sequence[tuple[CacheTable, PartFolder]]) -> None:
        """`tables` says which table is made from which parts."""
        self.path = folder / "generations.duckdb"
        self._tables = tables

    def catch_up(self) -> None:
        """Let the tables have exactly what the parts have; a damaged file is made again.

        Raises:
            LockedError: another program keeps the file open.
            ArtifactError: the disk is full, the folder read-only, or the file of a later release.
        """
        try:
            try:
                self._follow()
            except duckdb.Error as error:
                if environment_error(error, self.path):
                    raise
                log.warning("%s is damaged and made again from its parts: %s", self.path, error)
                self.delete()
                self._follow()
        except duckdb.Error as error:
            raise environment_error(error, self.path) or ArtifactError(
                f"{self.path} cannot be used: {error}"
            ) from error

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
            self.delete()
            raise ArtifactError(
                f"{self.path} is damaged and was deleted ({error}); run again, it is made again from its parts"
            ) from error

    @contextmanager
    def frozen(self, con: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Attach a file that cannot be written, as it is.

        Raises:
            ArtifactError: there is none, or it is damaged or of another release.
        """
        if not self.path.exists():
            raise ArtifactError(f"{self.path.parent} is read-only and has no index; choose a writable root")
        try:
            with attached(con, self.path, NAME, read_only=True):
                if (layout := _layout(con)) != LAYOUT:
                    raise ArtifactError(
                        f"the cache's index has layout {layout}, this release reads {LAYOUT}; look something up in it "
                        "once where its folder can be written"
                    )
                for table, folder in self._tables:
                    if behind := len(set(folder.names()) - _indexed(con, table).keys()):
                        log.warning("%s is read-only: %s parts are not in its index", folder.folder, behind)
                yield
        except duckdb.Error as error:
            if "Corrupt database file" not in str(error) and not isinstance(error, duckdb.IOException):
                raise
            raise ArtifactError(f"{self.path} cannot be read: {error}") from error

    @contextmanager
    def empty(self, con: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Attach empty tables."""
        with attached(con, ":memory:", NAME):
            self._create(con)
            yield

    def delete(self) -> None:
        """Delete the file, and what earlier releases kept beside it."""
        try:
            for name in ("generations.index", "judged"):
                if (self.path.parent / name).exists():
                    shutil.rmtree(self.path.parent / name)
            # Last, as its layout says that the others may still be there; a log without its file would be replayed.
            for suffix in (".wal", ""):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, self.path) from error

    def _follow(self) -> None:
        with self._opened() as con:
            for table, folder in self._tables:
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
        for table, _ in self._tables:
            _clear(con, table)
        con.execute(MARK.format(layout=LAYOUT))
        con.execute("COMMIT")


def _layout(con: duckdb.DuckDBPyConnection) -> int:
    """Layout of the attached file; 0 for a new one."""
    try:
        return con.execute("SELECT coalesce(max(version), 0) FROM cache.schema_migrations").fetchall()[0][0]
    except duckdb.CatalogException:
        return 0


def _clear(con: duckdb.DuckDBPyConnection, table: CacheTable) -> None:
    types = ", ".join(f"{name} {sql_type}" for name, sql_type in table.columns.items())
    con.execute(CREATE.format(table=table.name, types=types))


def _indexed(con: duckdb.DuckDBPyConnection, table: CacheTable) -> dict[str, int]:
    """Parts whose rows are in a table, and how many rows each has."""
    query = f"SELECT name, sum(rows)::BIGINT FROM cache.{table.name}_parts GROUP BY name"  # noqa: S608 (our own names)
    return dict(con.execute(query).fetchall())


def _follow(con: duckdb.DuckDBPyConnection, table: CacheTable, folder: PartFolder) -> None:
    """Let a table have exactly what the parts have."""
    indexed, replacement = set(_indexed(con, table)), folder.replacement()
    if replacement and indexed.issuperset(replacement.old):
        # The big one has the same rows in the same order, so the same ones count.
        con.execute(
            f"UPDATE cache.{table.name}_parts SET name = $new, number = $number WHERE list_contains($old, name)",  # noqa: S608
            {"new": replacement.new, "number": number_of(replacement.new), "old": list(replacement.old)},
        )
        indexed = set(_indexed(con, table))
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
            group[name] = folder.rows(name)
        except TornPart as error:
            folder.set_aside(name, error)
        if sum(group.values()) >= GROUP_ROWS:
            _insert(con, table, folder, group)
            group = {}
    if group:
        _insert(con, table, folder, group)
    folder.settle()


def _insert(con: duckdb.DuckDBPyConnection, table: CacheTable, folder: PartFolder, rows: dict[str, int]) -> None:
    """Insert the rows of some parts, all or none of them."""
    indexed = _indexed(con, table)
    first = con.execute(f"SELECT coalesce(max(id), 0) + 1 FROM cache.{table.name}_parts").fetchall()[0][0]  # noqa: S608
    parts = pa.table(
        {
            "id": pa.array(range(first, first + len(rows)), pa.int32()),
            "number": pa.array(map(number_of, rows), pa.int64()),
            "name": list(rows),
            "rows": pa.array(rows.values(), pa.int64()),
            "path": [str(folder.folder / name) for name in rows],
        }
    )
    pieces = {
        "table": table.name,
        "columns": ", ".join(f"f.{name}" for name in table.columns),
        "key": ", ".join(f"f.{name}" for name in table.key),
        "same": " AND ".join(f"f.{name} = t.{name}" for name in table.key),
        "files": FILES,
    }
    files = {"files": parts.column("path").to_pylist()}
    con.register("arriving", parts)
    con.execute("BEGIN")
    if indexed and min(map(order_of, rows)) < max(map(order_of, indexed)):
        con.execute(SUPERSEDE.format(**pieces), files)
    con.execute(INSERT.format(**pieces), files)
    con.execute(f"INSERT INTO cache.{table.name}_parts SELECT id, number, name, rows FROM arriving")  # noqa: S608
    con.execute("COMMIT")
    con.unregister("arriving")
