"""The DuckDB file over the cache's segments: which key was answered how. Only an index, it can always be made again."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paraclip_core.errors import ArtifactError, LockedError
from storage.atomic import storage_error
from storage.migrations import migrate
from storage.segments import INDEXED

__all__ = ["CacheGroup", "GenerationIndex"]

FOREIGN_WAIT_SECONDS = 30.0
LOOKUP_KEYS = 500_000
CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": "1GB",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
}
# DuckDB's widest integer has no Arrow type of its own, so a key travels as two halves.
KEY = "(hi::UHUGEINT * 18446744073709551616::UHUGEINT + lo::UHUGEINT)"


@dataclass(frozen=True)
class CacheGroup:
    """How many rows and different keys the cache has of one step, model and prompt."""

    step: int
    model: str
    prompt: str
    rows: int
    keys: int


class GenerationIndex:
    """One open connection. DuckDB lets one process at a time write, so open it briefly and under the cache's lock."""

    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        self._con = con

    @classmethod
    @contextmanager
    def opened(cls, path: Path, read_only: bool = False) -> Iterator[GenerationIndex]:
        """Open the file, made or migrated if need be, and close it at the end.

        Raises:
            LockedError: another program keeps the file open.
            ArtifactError: the disk is full, the folder read-only, or the file of a later release.
            duckdb.Error: the file is damaged.
        """
        con = _connect(path, read_only)
        try:
            if not read_only:
                migrate(con)
            yield cls(con)
        finally:
            con.close()

    @staticmethod
    def delete(path: Path) -> None:
        """Delete the file and what DuckDB keeps beside it."""
        for suffix in ("", ".wal"):
            try:
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            except OSError as error:
                raise storage_error(error, path) from error

    def segments(self) -> set[str]:
        """Names of the indexed segments."""
        return {name for (name,) in self._con.execute("SELECT name FROM segments").fetchall()}

    def add(self, segments: Iterable[tuple[str, pa.Table]]) -> None:
        """Index segments, all or none of them."""
        self._con.execute("BEGIN")
        first = self._con.execute("SELECT coalesce(max(id), 0) + 1 FROM segments").fetchall()[0][0]
        for segment, (name, table) in enumerate(segments, start=first):
            hi, lo = _halves(table.column("key"))
            rows = table.drop_columns(["key"]).append_column("hi", hi).append_column("lo", lo)
            self._con.register("incoming", rows)
            self._con.execute(
                f"INSERT INTO generations SELECT {KEY}, ?, step, attempt, model, prompt, completions FROM incoming",  # noqa: S608
                [segment],
            )
            self._con.unregister("incoming")
            self._con.execute("INSERT INTO segments VALUES (?, ?, ?)", [segment, name, table.num_rows])
        self._con.execute("COMMIT")

    def drop(self, names: set[str]) -> None:
        """Forget segments whose files are gone."""
        self._con.execute("BEGIN")
        self._con.register("gone", pa.table({"name": pa.array(sorted(names), pa.string())}))
        self._con.execute(
            "DELETE FROM generations WHERE segment IN (SELECT id FROM segments WHERE name IN (SELECT name FROM gone))"
        )
        self._con.execute("DELETE FROM segments WHERE name IN (SELECT name FROM gone)")
        self._con.unregister("gone")
        self._con.execute("COMMIT")

    def lookup(self, keys: pa.FixedSizeBinaryArray, order: Sequence[str]) -> pa.Table:
        """Columns `key` and `completions` of the known ones among `keys`, in the order of `keys`.

        Args:
            keys: different keys.
            order: names of the segments; where a key was answered more than once, the first of them counts.
        """
        numbers = dict(self._con.execute("SELECT name, id FROM segments").fetchall())
        turns = np.full(1 + max(numbers.values(), default=0), len(order))
        for turn, name in enumerate(order):
            if name in numbers:
                turns[numbers[name]] = turn
        chunks = [self._lookup(keys[i : i + LOOKUP_KEYS], turns) for i in range(0, len(keys), LOOKUP_KEYS)]
        return pa.concat_tables(chunks) if chunks else _answers(keys, pa.array([], INDEXED.field("completions").type))

    def _lookup(self, keys: pa.FixedSizeBinaryArray, turns: np.ndarray) -> pa.Table:
        hi, lo = _halves(keys)
        asked = pa.table({"hi": hi, "lo": lo, "position": np.arange(len(keys), dtype=np.int32)})
        self._con.register("asked", asked)
        hits = self._con.sql(
            "SELECT a.position, g.segment, g.rowid AS row, g.completions FROM generations g "  # noqa: S608
            f"JOIN (SELECT {KEY} AS key, position FROM asked) a ON a.key = g.key"
        ).to_arrow_table()
        self._con.unregister("asked")
        first = _first(
            hits.column("position").to_numpy(),
            turns[hits.column("segment").to_numpy()],
            hits.column("row").to_numpy(),
            len(keys),
        )
        hits = hits.take(pa.array(first))
        return _answers(keys.take(hits.column("position").combine_chunks()), hits.column("completions"))

    def groups(self) -> tuple[CacheGroup, ...]:
        """Rows and keys by step, model and prompt."""
        found = self._con.execute(
            "SELECT step, model, prompt, count(*), count(DISTINCT key) FROM generations GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        return tuple(CacheGroup(*row) for row in found)

    def counts(self) -> tuple[int, int]:
        """Rows and different keys."""
        return self._con.execute("SELECT count(*), count(DISTINCT key) FROM generations").fetchall()[0]


def _connect(path: Path, read_only: bool) -> duckdb.DuckDBPyConnection:
    started = time.monotonic()
    while True:
        try:
            return duckdb.connect(path, read_only=read_only, config=CONFIG)
        except duckdb.Error as error:
            text = str(error)
            if "Could not set lock" not in text and "different configuration" not in text:
                raise
            if time.monotonic() - started > FOREIGN_WAIT_SECONDS:
                raise LockedError(f"another program keeps {path} open; close it and run again ({text})") from error
            time.sleep(0.05)


def environment_error(error: duckdb.Error, path: Path) -> ArtifactError | None:
    """What a DuckDB error says about the machine; None where it says something about the file."""
    text = str(error)
    for sign, code in (
        ("No space left", errno.ENOSPC),
        ("Read-only file system", errno.EROFS),
        ("Permission denied", errno.EACCES),
    ):
        if sign in text:
            return storage_error(OSError(code, sign), path)
    if isinstance(error, duckdb.OutOfMemoryException):
        return ArtifactError(f"too little memory or disk to use {path}: {text}")
    return None


def _halves(keys: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    """The upper and lower 64 bits of 16-byte keys, read as big-endian numbers."""
    whole = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
    _, data = whole.buffers()
    raw = (
        np.frombuffer(data, dtype=">u8", count=2 * len(whole), offset=16 * whole.offset) if len(whole) else np.empty(0)
    )
    pairs = raw.reshape(-1, 2).astype(np.uint64)
    return pa.array(np.ascontiguousarray(pairs[:, 0])), pa.array(np.ascontiguousarray(pairs[:, 1]))


def _first(position: np.ndarray, turn: np.ndarray, row: np.ndarray, count: int) -> np.ndarray:
    """Indices of the earliest hit of each position, ordered by position."""
    if len(position) and np.bincount(position, minlength=count).max() == 1:
        return np.argsort(position)
    order = np.lexsort((row, turn, position))
    return order[np.unique(position[order], return_index=True)[1]]


def _answers(keys: pa.FixedSizeBinaryArray, completions: pa.Array | pa.ChunkedArray) -> pa.Table:
    schema = pa.schema([INDEXED.field("key"), INDEXED.field("completions")])
    return pa.table([keys, pc.cast(completions, INDEXED.field("completions").type)], schema=schema)
