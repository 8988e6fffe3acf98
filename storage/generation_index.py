"""The index over the cache's segments: which key was answered how. It can always be made again.

A DuckDB file says what there is. Beside it lie sorted runs, which say which rows may be a key's, and keys and answers
under their rows' numbers; they are found without reading what was not asked for. DuckDB remembers how far those files
are filled, in the transaction that adds the rows, so a kill leaves nothing half done.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from paraclip_core.errors import ArtifactError, LockedError
from storage import key_runs
from storage.answer_file import AnswerFile, Filled, Rows
from storage.atomic import storage_error
from storage.key_runs import Run
from storage.mapped import TornIndex
from storage.migrations import migrate, need_newest
from storage.segments import INDEXED

__all__ = ["CONFIG", "CacheGroup", "GenerationIndex", "TornIndex", "environment_error", "rows_digest"]

FOREIGN_WAIT_SECONDS = 30.0
LOOKUP_KEYS = 1_000_000
DIGEST_ROWS = 200_000
# So many rows of segments that are gone may lie in the files, or as many as there are other ones.
DEAD_ROWS = 500_000
CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": "1GB",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
}
# DuckDB's widest integer has no Arrow type of its own, so a key travels as two halves.
KEY = "(hi::UHUGEINT * 18446744073709551616::UHUGEINT + lo::UHUGEINT)"
# What a run has of it.
START = "(key // 79228162514264337593543950336::UHUGEINT)::UBIGINT"
ANSWERS = pa.schema([INDEXED.field("key"), INDEXED.field("completions")])
CODED = pa.schema(
    [
        field.with_type(pa.dictionary(pa.int32(), pa.string())) if field.type == pa.string() else field
        for field in INDEXED
    ]
)
# Of many rows in any order.
DIGEST = "count(*), bit_xor(hash({}, step, attempt, model::VARCHAR, prompt::VARCHAR, completions))"


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

    def __init__(self, con: duckdb.DuckDBPyConnection, path: Path) -> None:
        self._con = con
        self._folder = _folder_of(path)
        self._answers = AnswerFile(self._folder)

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
            (need_newest if read_only else migrate)(con)
            yield cls(con, path)
        finally:
            con.close()

    @staticmethod
    def delete(path: Path) -> None:
        """Delete the file and what is kept beside it."""
        try:
            for suffix in ("", ".wal"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            if _folder_of(path).exists():
                shutil.rmtree(_folder_of(path))
        except OSError as error:
            raise storage_error(error, path) from error

    def segments(self) -> set[str]:
        """Names of the indexed segments."""
        return {name for (name,) in self._con.execute("SELECT name FROM segments").fetchall()}

    def add(self, segments: Iterable[tuple[str, pa.Table]]) -> None:
        """Index segments, all or none of them.

        Raises:
            ArtifactError: the disk is full or the folder read-only.
            TornIndex: what is there already is damaged.
        """
        given = list(segments)
        if not given:
            return
        self._con.execute("BEGIN")
        first = self._con.execute("SELECT coalesce(max(id), 0) + 1 FROM segments").fetchall()[0][0]
        ids = np.arange(first, first + len(given), dtype=np.int32)
        counts = np.array([table.num_rows for _, table in given], dtype=np.int64)
        rows = _with_halves(pa.concat_tables([_alike(table) for _, table in given]))
        codes, groups = _groups(rows)
        numbers = np.array([self._group_id(*group) for group in groups], dtype=np.int32)
        place = self._filled().rows
        self._insert(
            "INSERT INTO segments SELECT * FROM incoming",
            {
                "id": ids,
                "name": [name for name, _ in given],
                "rows": counts,
                "place": place + np.cumsum(counts) - counts,
            },
        )
        self._insert(
            f"INSERT INTO generations SELECT {KEY}, segment, group_id, attempt, place FROM incoming",  # noqa: S608
            {
                "segment": np.repeat(ids, counts),
                "group_id": numbers[codes],
                "place": np.arange(place, place + len(rows)),
                **{name: rows.column(name) for name in ("hi", "lo", "attempt")},
            },
        )
        try:
            self._write_files(rows)
            self._con.execute("COMMIT")
            key_runs.sweep(self._folder, self._runs())
        except OSError as error:
            raise storage_error(error, self._folder) from error

    def _write_files(self, rows: pa.Table) -> None:
        filled = self._filled()
        after = self._answers.append(_raw(rows.column("key")), rows.column("completions"), filled)
        self._con.execute("UPDATE filled SET rows = ?, strings = ?, bytes = ?", after)
        runs = self._runs()
        number = 1 + max((run.number for run in runs), default=0)
        runs.append(key_runs.write(self._folder, number, rows.column("hi").to_numpy(), filled.rows))
        if due := key_runs.due(runs):
            runs = [run for run in runs if run not in due] + [key_runs.join(self._folder, due, number + 1)]
        self._con.execute("DELETE FROM runs")
        columns = zip(Run._fields, zip(*runs, strict=True), strict=True)
        self._insert("INSERT INTO runs SELECT * FROM incoming", dict(columns))

    def _filled(self) -> Filled:
        return Filled(*self._con.execute("SELECT rows, strings, bytes FROM filled").fetchall()[0])

    def _runs(self) -> list[Run]:
        return [Run(*run) for run in self._con.execute("SELECT number, rows, slots, reach FROM runs").fetchall()]

    def _group_id(self, step: int, model: str, prompt: str) -> int:
        found = self._con.execute(
            "SELECT id FROM groups WHERE step = ? AND model = ? AND prompt = ?", [step, model, prompt]
        ).fetchall()
        if found:
            return found[0][0]
        (number,) = self._con.execute("SELECT coalesce(max(id), 0) + 1 FROM groups").fetchall()[0]
        self._con.execute("INSERT INTO groups VALUES (?, ?, ?, ?)", [number, step, model, prompt])
        return number

    def _insert(self, statement: str, columns: dict[str, Any]) -> None:
        self._con.register("incoming", pa.table(columns))
        self._con.execute(statement)
        self._con.unregister("incoming")

    def drop(self, names: set[str]) -> None:
        """Forget segments whose files are gone, or everything where that would leave more dead rows than others."""
        self._con.execute("BEGIN")
        self._con.register("gone", pa.table({"name": pa.array(sorted(names), pa.string())}))
        self._con.execute(
            "DELETE FROM generations WHERE segment IN (SELECT id FROM segments WHERE name IN (SELECT name FROM gone))"
        )
        self._con.execute("DELETE FROM segments WHERE name IN (SELECT name FROM gone)")
        self._con.unregister("gone")
        left = self._con.execute("SELECT coalesce(sum(rows), 0)::BIGINT FROM segments").fetchall()[0][0]
        if self._filled().rows - left > max(left, DEAD_ROWS):
            self._clear()
        self._con.execute("COMMIT")

    def clear(self) -> None:
        """Forget everything."""
        self._con.execute("BEGIN")
        self._clear()
        self._con.execute("COMMIT")

    def _clear(self) -> None:
        for table in ("generations", "segments", "runs"):
            self._con.execute(f"DELETE FROM {table}")  # noqa: S608
        self._con.execute("UPDATE filled SET rows = 0, strings = 0, bytes = 0")

    def lookup(self, keys: pa.FixedSizeBinaryArray, order: Sequence[str]) -> pa.Table:
        """Columns `key` and `completions` of the known ones among `keys`, each once, in any order.

        Args:
            keys: different keys.
            order: names of the segments; where a key was answered more than once, the first of them counts.

        Raises:
            TornIndex: the index is damaged.
        """
        segments = self._segments(order)
        tables = [pa.table([[], []], schema=ANSWERS)]
        for start in range(0, len(keys), LOOKUP_KEYS):
            tables += self._lookup(keys[start : start + LOOKUP_KEYS], segments)
        return pa.concat_tables(tables)

    def _segments(self, order: Sequence[str]) -> _Segments:
        turns = {name: turn for turn, name in enumerate(order)}
        known = self._con.execute("SELECT name, place, rows FROM segments ORDER BY place, rows").fetchall()
        return _Segments(
            np.array([place for _, place, _ in known], np.int64),
            np.array([place + rows for _, place, rows in known], np.int64),
            np.array([turns.get(name, len(order)) for name, _, _ in known], np.int64),
        )

    def _lookup(self, keys: pa.FixedSizeBinaryArray, segments: _Segments) -> Iterator[pa.Table]:
        filled = self._filled()
        rows = self._found(_raw(keys), segments, filled)
        for start, completions in self._answers.take(rows, filled):
            yield _answers(rows.keys[start : start + len(completions)], completions)

    def _found(self, keys: np.ndarray, segments: _Segments, filled: Filled) -> Rows:
        """The rows that count for those of the keys, uint64 [n, 2], which are known."""
        asked = key_runs.entries(_number(keys[:, 0]))
        position, places = key_runs.find(self._folder, self._runs(), asked)
        rows, wanted = self._answers.rows(places, filled), keys.take(position, axis=0)
        good = (rows.keys[:, 0] == wanted[:, 0]) & (rows.keys[:, 1] == wanted[:, 1])
        if (segments.ends - segments.starts).sum() < filled.rows:
            good &= segments.alive(places)
        if not good.all():
            position, places, rows = position[good], places[good], rows.chosen(good)
        if len(position) and np.bincount(position).max() > 1:
            rows = rows.chosen(np.sort(_first(position, segments.turn(places), places)))
        return rows

    def groups(self) -> tuple[CacheGroup, ...]:
        """Rows and keys by step, model and prompt."""
        found = self._con.execute(
            "SELECT p.step, p.model, p.prompt, count(*), count(DISTINCT g.key) FROM generations g "
            "JOIN groups p ON p.id = g.group_id GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        return tuple(CacheGroup(*row) for row in found)

    def digests(self) -> dict[str, tuple[int, int]]:
        """Rows of each segment and a hash over them, as `rows_digest` makes it of the segment's file.

        Raises:
            TornIndex: the index is damaged.
        """
        total: dict[str, tuple[int, int]] = {name: (0, 0) for name in self.segments()}
        filled = self._filled()
        for start in range(0, filled.rows, DIGEST_ROWS):
            places = np.arange(start, min(start + DIGEST_ROWS, filled.rows))
            rows = self._answers.rows(places, filled)
            completions = pa.chunked_array([lists for _, lists in self._answers.take(rows, filled)])
            hi, lo = (_number(half) for half in rows.keys.T)
            columns = {"place": places, "hi": hi, "lo": lo, "completions": completions}
            self._con.register("incoming", pa.table(columns))
            found = self._con.execute(
                f"SELECT s.name, {DIGEST.format('g.key')} FROM generations g "  # noqa: S608
                f"JOIN incoming i ON i.place = g.place AND {KEY} = g.key "
                "JOIN segments s ON s.id = g.segment JOIN groups p ON p.id = g.group_id GROUP BY s.name"
            ).fetchall()
            self._con.unregister("incoming")
            for name, count, digest in found:
                total[name] = total[name][0] + count, total[name][1] ^ digest
        return total

    def check(self) -> None:
        """See that each row's number is found under the beginning of its key, by reading all of them.

        Raises:
            TornIndex: it is not.
        """
        segments, count, digest = self._segments(()), 0, 0
        pairs = "SELECT count(*), coalesce(bit_xor(hash({}, place::BIGINT)), 0) FROM {}"
        for run in self._runs():
            for start, places in key_runs.checked(self._folder, run):
                here = segments.alive(places)
                self._con.register("incoming", pa.table({"start": start[here], "place": places[here]}))
                found = self._con.execute(pairs.format("start", "incoming")).fetchall()[0]
                self._con.unregister("incoming")
                count, digest = count + found[0], digest ^ found[1]
        if (count, digest) != self._con.execute(pairs.format(START, "generations")).fetchall()[0]:
            raise TornIndex(f"the runs in {self._folder} are not those of its rows")

    def counts(self) -> tuple[int, int]:
        """Rows and different keys."""
        return self._con.execute("SELECT count(*), count(DISTINCT key) FROM generations").fetchall()[0]


def rows_digest(con: duckdb.DuckDBPyConnection, table: pa.Table) -> tuple[int, int]:
    """How many rows a table with the columns `INDEXED` has, and a hash over them."""
    con.register("incoming", _with_halves(table))
    count, digest = con.execute(f"SELECT {DIGEST.format(KEY)} FROM incoming").fetchall()[0]  # noqa: S608
    con.unregister("incoming")
    return count, digest or 0


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


def _with_halves(table: pa.Table) -> pa.Table:
    hi, lo = _halves(table.column("key"))
    return table.append_column("hi", hi).append_column("lo", lo)


def _raw(keys: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The bytes of 16-byte keys, uint64 [n, 2]."""
    whole = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
    if not len(whole):
        return np.empty((0, 2), np.uint64)
    _, data = whole.buffers()
    return np.frombuffer(data, np.uint64, 2 * len(whole), 16 * whole.offset).reshape(-1, 2)


def _halves(keys: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    """The upper and lower 64 bits of 16-byte keys, read as big-endian numbers."""
    raw = _raw(keys)
    return pa.array(_number(raw[:, 0])), pa.array(_number(raw[:, 1]))


def _number(half: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(half).view(">u8").astype(np.uint64)


@dataclass(frozen=True)
class _Segments:
    """Where each segment's rows are, in ascending order, and which segment's answers count first."""

    starts: np.ndarray
    ends: np.ndarray
    turns: np.ndarray

    def alive(self, places: np.ndarray) -> np.ndarray:
        """Which are rows of a segment, not of one that is gone: bool [n]."""
        return places < np.append(self.ends, 0)[self._of(places)]

    def turn(self, places: np.ndarray) -> np.ndarray:
        """The turn of each row that is alive."""
        return self.turns[self._of(places)]

    def _of(self, places: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.starts, places, "right") - 1


def _folder_of(path: Path) -> Path:
    return path.with_suffix(".index")


def _first(position: np.ndarray, turn: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Indices of the earliest hit of each position."""
    order = np.lexsort((row, turn, position))
    return order[np.unique(position[order], return_index=True)[1]]


def _alike(table: pa.Table) -> pa.Table:
    """The `INDEXED` columns with model and prompt as dictionaries, however they come."""
    columns = []
    for field in CODED:
        column = table.column(field.name)
        if pa.types.is_dictionary(field.type) and not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        columns.append(column.cast(field.type))
    return pa.table(columns, schema=CODED)


def _groups(rows: pa.Table) -> tuple[np.ndarray, list[tuple[int, str, str]]]:
    """The number of each row's group, and each group's step, model and prompt."""
    model, prompt = (rows.column(name).unify_dictionaries().combine_chunks() for name in ("model", "prompt"))
    if not len(rows):
        return np.empty(0, np.int64), []
    models, prompts = model.dictionary.to_pylist(), prompt.dictionary.to_pylist()
    code = rows.column("step").to_numpy().astype(np.int64)
    for column, values in ((model, models), (prompt, prompts)):
        code = code * len(values) + column.indices.to_numpy()
    _, first, codes = np.unique(code, return_index=True, return_inverse=True)
    steps = rows.column("step").to_numpy()
    at = [(int(steps[row]), models[model.indices[row].as_py()], prompts[prompt.indices[row].as_py()]) for row in first]
    return codes, at


def _answers(keys: np.ndarray, completions: pa.Array) -> pa.Table:
    whole = pa.FixedSizeBinaryArray.from_buffers(ANSWERS.field("key").type, len(keys), [None, pa.py_buffer(keys)])
    return pa.table([whole, completions.cast(INDEXED.field("completions").type)], schema=ANSWERS)
