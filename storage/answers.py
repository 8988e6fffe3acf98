"""The answers cache: every completion ever paid for, and every filter result on one, as DuckDB tables.

The truth is the append-only Parquet parts in ``<cache>/segments/`` and ``<cache>/filter_results/``. The DuckDB file
``<cache>/answers.duckdb`` has their rows as tables and catches up whenever it is used, so a kill between the two loses
nothing and the file may be deleted.
If a key occurs more than once, the row of the part with the lowest name counts (numbers are given under a lock, so
that is the one that was written first), and in it the first row; rebuilding the file does not change that.

Everything here raises ArtifactError if a disk fails or another program keeps the file open.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from paraclip.storage.files import sweep_drafts
from paraclip.storage.locks import lock
from paraclip.storage.object_store import RemoteFolder
from paraclip.storage.parquet import CONFIG
from paraclip.storage.parts import DamagedPart, PartFolder, PartMirror, check_columns, digest_of
from paraclip_core import tables
from paraclip_core.errors import ArtifactError, UnknownNameError

log = logging.getLogger(__name__)

LOCKED = "Could not set lock"
"""What DuckDB says if another program has the file open."""
FILE = "answers.duckdb"
"""The name also stands for the layout of the tables: other tables get another name."""
INSERTED_ROWS = 500_000
PART_ROWS = 100_000
BIG_ROWS, BIG_BYTES = 500_000, 128 << 20
"""Size of a big part; compaction leaves a part alone from half of it on."""
# A part with this in its schema came from another cache, where it was paid for; compaction keeps the two kinds apart.
IMPORTED = {b"imported": b"1"}

COUNTED = ("key", "step", "engine", "model", "prompt", "completions", "prompt_tokens", "completion_tokens")
"""Columns of a generation that the cache looks up or counts."""


@dataclass(frozen=True)
class CacheTable:
    """A table of the file. In addition to `columns` it has `part`, the id of the part that a row comes from."""

    name: str
    folder: str
    """Folder of its parts."""
    columns: tuple[str, ...]
    key: tuple[str, ...]
    schema: pa.Schema
    """Columns that every part has; a writer may add others."""

    def sql(self, template: str) -> str:
        """A statement about this table, from a template."""
        return template.format(
            table=self.name,
            columns=", ".join(f"f.{name}" for name in self.columns),
            key=", ".join(f"f.{name}" for name in self.key),
            same=" AND ".join(f"f.{name} = t.{name}" for name in self.key),
            parts=PARTS,
            arriving=f"{PARTS} AS f JOIN arriving AS a ON a.path = f.filename",
        )


GENERATIONS = CacheTable(
    "generations",
    "segments",
    ("key", "completions"),
    ("key",),
    pa.schema([tables.GENERATIONS.field(name) for name in COUNTED]),
)
FILTER_RESULTS = CacheTable(
    "filter_results",
    "filter_results",
    tuple(tables.FILTER_RESULTS.names),
    ("generation", "parent", "filters"),
    tables.FILTER_RESULTS,
)

# A folder above the cache may be called `key=1` and is no column.
PARTS = "read_parquet($files, filename = true, file_row_number = true, hive_partitioning = false, union_by_name = true)"
CREATE = """
    CREATE OR REPLACE TABLE cache.{table} AS SELECT {columns}, 0::INTEGER AS part FROM plain AS f;
    CREATE OR REPLACE TABLE cache.{table}_parts (id INTEGER, name VARCHAR);
"""
SUPERSEDE = """
    DELETE FROM cache.{table} AS t USING
        (SELECT {key}, min(a.name) AS name FROM {arriving} GROUP BY {key}) AS f, cache.{table}_parts AS p
    WHERE {same} AND p.id = t.part AND p.name > f.name
"""
INSERT = """
    INSERT INTO cache.{table}
    SELECT {columns}, part FROM (
        SELECT {columns}, a.id AS part,
            row_number() OVER (PARTITION BY {key} ORDER BY a.name, f.file_row_number) AS turn
        FROM {arriving}
    ) AS f ANTI JOIN cache.{table} AS t ON {same}
    WHERE turn = 1
"""
NOTE = "INSERT INTO cache.{table}_parts SELECT id, name FROM arriving"
FIRST_ROWS = """
    SELECT f.* EXCLUDE (filename, file_row_number) FROM {parts} AS f
    QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY filename, file_row_number) = 1
    ORDER BY filename, file_row_number
"""
GROUPS = """
    SELECT step, model, prompt, count(*) AS rows, count(DISTINCT key) AS keys FROM {parts} GROUP BY ALL ORDER BY ALL
"""
PAID = """
    SELECT coalesce(sum(prompt_tokens), 0)::BIGINT, coalesce(sum(completion_tokens), 0)::BIGINT FROM (
        SELECT DISTINCT ON (key) prompt_tokens, completion_tokens FROM {parts}
        WHERE engine = $engine AND model = $model
            AND filename NOT IN (SELECT file_name FROM parquet_kv_metadata($files) WHERE key = 'imported')
    )
"""


@dataclass(frozen=True)
class CacheStats:
    """What a cache holds."""

    rows: int
    """Generations, including those that repeat a key."""
    keys: int
    """Distinct request keys."""
    segments: int
    """Parts of generations."""
    damaged: int
    """Damaged parts that were set aside, those of filter results included."""
    bytes: int
    """Size of all parts of generations."""
    filter_results: int
    groups: list[dict[str, Any]]
    """Rows and keys by step, model and prompt."""


@dataclass
class Merged:
    """What a cache took over from another one."""

    new: int = 0
    """Generations that are new here."""
    known: int = 0
    """Generations whose keys were answered here before; they are skipped."""
    damaged: int = 0
    """Unreadable parts; they stay where they are."""


class AnswerStore:
    """An answers cache in one folder; any number of processes and threads may use it at once."""

    def __init__(self, cache_folder: Path | str, remote: RemoteFolder | None = None) -> None:
        """`cache_folder` is created on the first append; `remote` shares its parts with other machines."""
        self.folder = Path(cache_folder).absolute()
        self.parts, self.filter_result_parts = (
            PartFolder(self.folder / table.folder, table.schema) for table in (GENERATIONS, FILTER_RESULTS)
        )
        self.mirror = remote and PartMirror(remote, self.folder, (GENERATIONS.folder, FILTER_RESULTS.folder))
        self.file = CacheFile(self.folder / FILE, {GENERATIONS: self.parts, FILTER_RESULTS: self.filter_result_parts})
        self._behind = False

    def append(self, generations: pa.Table) -> None:
        """Keep generations; on return they are on disk and survive a kill. The DuckDB file follows later.

        The table has the columns of `GENERATIONS.schema`; additional ones are kept, too.
        """
        self._append(self.parts, generations)

    def append_filter_results(self, filter_results: pa.Table) -> None:
        """Keep filter results, as :meth:`append` does."""
        self._append(self.filter_result_parts, filter_results)

    def _append(self, folder: PartFolder, table: pa.Table) -> None:
        check_columns(table, folder.schema)
        if not table.num_rows:
            return
        drafts = [folder.draft(table.slice(start, PART_ROWS)) for start in range(0, table.num_rows, PART_ROWS)]
        with self.locked():
            published = folder.publish(drafts)
        self._behind = True
        if self.mirror is not None:
            self.mirror.push(f"{folder.folder.name}/{name}" for name in published)

    @contextmanager
    def attached(self, con: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Attach everything to a connection, as readable tables `cache.generations` and `cache.filter_results`.

        The cache's lock is held until the end of the block, so keep it to a few joins and append nothing in it. If
        there is no cache yet, both tables are empty.
        """
        if self.mirror is not None:
            self.mirror.pull()
        if not self.exists():
            with _attached(con, ":memory:"):
                self.file.create(con)
                yield
            return
        with self.locked():
            self.file.catch_up()
            self._behind = False
            with self.file.attached(con):
                yield

    @contextmanager
    def tables(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A new connection with everything attached."""
        with self.file.side_connection() as con, self.attached(con):
            yield con

    def lookup(self, keys: pa.FixedSizeBinaryArray | pa.ChunkedArray) -> pa.Table:
        """Columns `key` binary(16) and `completions` list<string> of the `keys` that are cached, each once, unordered.

        For many keys, prefer a join with `attached`.
        """
        schema = pa.schema([GENERATIONS.schema.field(name) for name in GENERATIONS.columns])
        with self.tables() as con:
            con.register("asked", pa.table({"key": keys}))
            query = "SELECT key, completions FROM cache.generations SEMI JOIN asked USING (key)"
            return con.sql(query).to_arrow_table().cast(schema)

    def refresh(self) -> None:
        """Bring the DuckDB file up to date with the parts."""
        with self.tables():
            pass

    def close(self) -> None:
        """Bring the DuckDB file up to date with what was appended here; the store may be used again."""
        sweep_drafts(self.parts.folder)
        sweep_drafts(self.filter_result_parts.folder)
        if self._behind:
            self.refresh()
        if self.mirror is not None:
            self.mirror.push_rest()

    def exists(self) -> bool:
        """Whether anything was ever appended."""
        return self.parts.folder.is_dir() or self.filter_result_parts.folder.is_dir()

    def locked(self) -> AbstractContextManager[None]:
        """Keep every other user of this cache out; hold it briefly."""
        return lock(self.folder / "answers.lock")

    def stats(self) -> CacheStats:
        """Count what is there."""
        with self.tables() as con:
            ((keys, filter_results),) = con.execute(
                "SELECT (SELECT count(*) FROM cache.generations), (SELECT count(*) FROM cache.filter_results)"
            ).fetchall()
            files = [self.parts.folder / name for name in self.parts.names()]
            groups = self._read(con, GROUPS).to_pylist() if files else []
            damaged = self.parts.damaged() + self.filter_result_parts.damaged()
            rows, size = sum(group["rows"] for group in groups), sum(file.stat().st_size for file in files)
            return CacheStats(rows, keys, len(files), damaged, size, filter_results, groups)

    def paid_tokens(self, engine: str, model: str) -> tuple[int, int]:
        """Prompt and completion tokens of all generations of one engine and model.

        What was imported from other caches was paid for elsewhere and is not counted.
        """
        with self.tables() as con:
            if not self.parts.names():
                return 0, 0
            prompt, completion = self._read(con, PAID, engine=engine, model=model)
            return prompt[0].as_py(), completion[0].as_py()

    def _read(self, con: duckdb.DuckDBPyConnection, query: str, **values: str) -> pa.Table:
        """The result of a query over all parts of generations."""
        files = [str(self.parts.folder / name) for name in self.parts.names()]
        try:
            return con.sql(GENERATIONS.sql(query), params={"files": files, **values}).to_arrow_table()
        except duckdb.Error as error:
            raise ArtifactError(
                f"{self.parts.folder} cannot be read: {error}; delete {self.file.path} and run again: it is "
                "rebuilt from all sound parts"
            ) from error

    def merge(self, folder: Path | str) -> Merged:
        """Take over another cache's generations that are not answered here; merging twice changes nothing.

        Filter results are not taken over: they are recomputed from the generations.
        """
        # Parts that are joined meanwhile are gone: the same command takes over the rest.
        theirs = PartFolder(Path(folder).absolute() / GENERATIONS.folder, GENERATIONS.schema)
        if not theirs.folder.is_dir():
            raise UnknownNameError(
                f"{folder} is not a cache folder: it has no `{GENERATIONS.folder}`; expected what `paraclip cache "
                "export` made, or the folder cache of a root"
            )
        merged, batch = Merged(), []
        for name in theirs.names():
            try:
                batch.append(theirs.open(name).read())
            except DamagedPart as error:
                log.warning("part %s is damaged and not taken over: %s", theirs.folder / name, error)
                merged.damaged += 1
            if sum(table.num_rows for table in batch) >= PART_ROWS:
                self._take_over(batch, merged)
                batch = []
        if batch:
            self._take_over(batch, merged)
        return merged

    def _take_over(self, tables: list[pa.Table], merged: Merged) -> None:
        rows = pa.concat_tables(tables, promote_options="default").combine_chunks()
        known, first = set(self.lookup(rows.column("key")).column("key").to_pylist()), dict[bytes, int]()
        for number, key in enumerate(rows.column("key").to_pylist()):
            if key not in known:
                first.setdefault(key, number)
        new = list(first.values())
        merged.new += len(new)
        merged.known += len(rows) - len(new)
        taken = rows.take(pa.array(new, pa.int64()))
        self.append(taken.replace_schema_metadata({**(taken.schema.metadata or {}), **IMPORTED}))

    def compact(self) -> tuple[int, int]:
        """Join neighbouring small parts, one row per key; the first answer stays the first. Others wait meanwhile.

        Returns the number of parts before and after. A kill leaves the big part next to the small ones, whose rows it
        repeats; the next compaction joins them.
        """
        if self.mirror is not None:
            raise ArtifactError(f"{self.folder} is shared through an object store, where parts stay as they are")
        tables = self.file.tables
        before = sum(len(folder.names()) for folder in tables.values())
        if before:
            with self.locked(), self.file.side_connection() as con:
                # Damaged ones are set aside first.
                self.file.catch_up()
                for table, folder in tables.items():
                    for names in _small_neighbours(folder):
                        files = [str(folder.folder / name) for name in names]
                        whole = con.sql(table.sql(FIRST_ROWS), params={"files": files}).to_arrow_table()
                        # DuckDB knows no binary(16).
                        draft = folder.draft(whole.cast(folder.open(names[0]).schema_arrow))
                        folder.publish([draft], int(names[0][:8]))
                        # After a kill one of them may have these very rows.
                        folder.delete(name for name in names if digest_of(name) != digest_of(draft.name))
                self.file.catch_up()
        return before, sum(len(folder.names()) for folder in tables.values())


def _small_neighbours(folder: PartFolder) -> list[list[str]]:
    """Groups of parts to join; those with other columns, or imported ones, are not mixed with the rest."""
    groups: list[list[str]] = [[]]
    rows = size = 0
    layout = pa.schema([])
    for name in folder.names():
        part, part_bytes = folder.open(name), (folder.folder / name).stat().st_size
        part_rows, schema = part.metadata.num_rows, part.schema_arrow
        big = part_rows * 2 > BIG_ROWS or part_bytes * 2 > BIG_BYTES
        full = rows + part_rows > BIG_ROWS or size + part_bytes > BIG_BYTES
        if big or full or not schema.equals(layout, check_metadata=True):
            groups.append([])
            rows = size = 0
        if big:
            layout = pa.schema([])
            continue
        groups[-1].append(name)
        rows, size, layout = rows + part_rows, size + part_bytes, schema
    return [group for group in groups if len(group) > 1]


class CacheFile:
    """The DuckDB file of one cache folder. Use it while holding the cache's lock."""

    def __init__(self, path: Path, tables: Mapping[CacheTable, PartFolder]) -> None:
        """`tables` maps each table to its parts."""
        self.path, self.tables = path, tables

    def side_connection(self) -> duckdb.DuckDBPyConnection:
        """A new DuckDB connection without the file; what does not fit into memory goes where the file's would."""
        return duckdb.connect(":memory:", config=CONFIG | {"temp_directory": f"{self.path}.tmp"})

    def catch_up(self) -> None:
        """Make the tables have exactly what the parts have; a damaged file is rebuilt."""
        try:
            try:
                self._follow_all()
            except duckdb.Error as error:
                if LOCKED in str(error):
                    raise
                log.warning("%s is damaged and rebuilt from its parts: %s", self.path, error)
                self.delete()
                self._follow_all()
        except duckdb.Error as error:
            raise ArtifactError(f"{self.path} is unusable: {error}") from error

    @contextmanager
    def attached(self, con: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Attach the file to a connection, read-only."""
        try:
            with _attached(con, self.path, read_only=True):
                yield
        except duckdb.Error as error:
            if "Corrupt database file" not in str(error):
                raise
            self.delete()
            raise ArtifactError(f"{self.path} is damaged ({error}); run again to rebuild it from its parts") from error

    def delete(self) -> None:
        """Delete the file, and what a kill left on disk of its memory."""
        if (memory := self.path.with_name(f"{self.path.name}.tmp")).exists():
            shutil.rmtree(memory)
        # The log first: without its file it would be replayed.
        for suffix in (".wal", ""):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def create(self, con: duckdb.DuckDBPyConnection) -> None:
        """Create empty tables in the attached file if it has none."""
        if not con.execute("SELECT 1 FROM duckdb_tables() WHERE database_name = 'cache'").fetchall():
            con.execute("BEGIN")
            for table in self.tables:
                _clear(con, table)
            con.execute("COMMIT")

    def _follow_all(self) -> None:
        with self.side_connection() as con, _attached(con, self.path):
            con.execute("SET preserve_insertion_order = false")
            self.create(con)
            for table, folder in self.tables.items():
                _follow(con, table, folder)


def _clear(con: duckdb.DuckDBPyConnection, table: CacheTable) -> None:
    con.register("plain", table.schema.empty_table())
    con.execute(table.sql(CREATE))
    con.unregister("plain")


def _follow(con: duckdb.DuckDBPyConnection, table: CacheTable, folder: PartFolder) -> None:
    """Make a table have exactly what its parts have."""
    names, indexed = folder.names(), _indexed(con, table)
    if not indexed.issubset(names):
        log.info("parts of %s are gone, or joined; their table is rebuilt from the remaining ones", folder.folder)
        con.execute("BEGIN")
        _clear(con, table)
        con.execute("COMMIT")
        indexed = set()
    group: list[str] = []
    rows = 0
    for name in names:
        if name in indexed:
            continue
        try:
            rows += folder.open(name).metadata.num_rows
            group.append(name)
        except DamagedPart as error:
            folder.set_aside(error)
        if rows >= INSERTED_ROWS:
            _insert(con, table, folder, group)
            group, rows = [], 0
    if group:
        _insert(con, table, folder, group)


def _indexed(con: duckdb.DuckDBPyConnection, table: CacheTable) -> set[str]:
    """Names of the parts whose rows are in a table."""
    return {name for (name,) in con.execute(table.sql("SELECT name FROM cache.{table}_parts")).fetchall()}


def _insert(con: duckdb.DuckDBPyConnection, table: CacheTable, folder: PartFolder, names: list[str]) -> None:
    """Insert the rows of some parts, all or none of them."""
    indexed = _indexed(con, table)
    files = [str(folder.folder / name) for name in names]
    first = con.execute(table.sql("SELECT coalesce(max(id), 0) + 1 FROM cache.{table}_parts")).fetchall()[0][0]
    con.register("arriving", pa.table({"id": range(first, first + len(names)), "name": names, "path": files}))
    con.execute("BEGIN")
    if indexed and names[0] < max(indexed):
        con.execute(table.sql(SUPERSEDE), {"files": files})
    con.execute(table.sql(INSERT), {"files": files})
    con.execute(table.sql(NOTE))
    con.execute("COMMIT")
    con.unregister("arriving")


@contextmanager
def _attached(con: duckdb.DuckDBPyConnection, path: Path | str, read_only: bool = False) -> Iterator[None]:
    """Attach the file `path` as `cache`; detach it at the end."""
    con.execute("ATTACH ? AS cache" + (" (READ_ONLY)" if read_only else ""), [str(path)])
    try:
        yield
    except BaseException:
        # The error that is being raised says why this fails, too.
        with suppress(duckdb.Error):
            _detach(con)
        raise
    _detach(con)


def _detach(con: duckdb.DuckDBPyConnection) -> None:
    try:
        con.execute("DETACH cache")
    except duckdb.TransactionException:
        # A statement failed within a transaction of the caller's.
        con.execute("ROLLBACK")
        con.execute("DETACH cache")
