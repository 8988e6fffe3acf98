"""The index over the cache's segments: which key was answered how. It can always be made again.

A DuckDB file says what there is. Beside it lie sorted runs, which say which rows may have a key, and files of
keys and answers by row number; a look-up reads only what it asks for. DuckDB remembers how far those files
are filled, in the transaction that adds the rows, so a kill leaves nothing half done.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from storage import key_runs
from storage.answer_file import AnswerFile, Filled, Rows
from storage.atomic import storage_error
from storage.duckdb_file import attached
from storage.key_columns import as_numbers, coded, groups_of, key_bytes, with_halves
from storage.key_runs import Run
from storage.mapped import TornIndex
from storage.migrations import migrate, need_newest
from storage.segment_places import SegmentPlaces, first_of
from storage.segments import INDEXED

__all__ = ["CacheGroup", "GenerationIndex", "TornIndex", "rows_digest"]

LOOKUP_KEYS = 1_000_000
DIGEST_ROWS = 200_000
# So many rows of segments that are gone may lie in the files, or as many as there are other ones.
DEAD_ROWS = 500_000
# DuckDB's widest integer has no Arrow type of its own, so a key travels as two halves.
KEY = "(hi::UHUGEINT * 18446744073709551616::UHUGEINT + lo::UHUGEINT)"
# What a run has of it.
START = "(key // 79228162514264337593543950336::UHUGEINT)::UBIGINT"
ANSWERS = pa.schema([INDEXED.field("key"), INDEXED.field("completions")])
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
        with attached(path, read_only) as con:
            (need_newest if read_only else migrate)(con)
            yield cls(con, path)

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
        rows = with_halves(pa.concat_tables([coded(table) for _, table in given]))
        codes, groups = groups_of(rows)
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
        after = self._answers.append(key_bytes(rows.column("key")), rows.column("completions"), filled)
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

    def _segments(self, order: Sequence[str]) -> SegmentPlaces:
        turns = {name: turn for turn, name in enumerate(order)}
        known = self._con.execute("SELECT name, place, rows FROM segments ORDER BY place, rows").fetchall()
        return SegmentPlaces(
            np.array([place for _, place, _ in known], np.int64),
            np.array([place + rows for _, place, rows in known], np.int64),
            np.array([turns.get(name, len(order)) for name, _, _ in known], np.int64),
        )

    def _lookup(self, keys: pa.FixedSizeBinaryArray, segments: SegmentPlaces) -> Iterator[pa.Table]:
        filled = self._filled()
        rows = self._found(key_bytes(keys), segments, filled)
        for start, completions in self._answers.take(rows, filled):
            yield _answers(rows.keys[start : start + len(completions)], completions)

    def _found(self, keys: np.ndarray, segments: SegmentPlaces, filled: Filled) -> Rows:
        """The rows that count for those of the keys, uint64 [n, 2], which are known."""
        asked = key_runs.entries(as_numbers(keys[:, 0]))
        position, places = key_runs.find(self._folder, self._runs(), asked)
        rows, wanted = self._answers.rows(places, filled), keys.take(position, axis=0)
        good = (rows.keys[:, 0] == wanted[:, 0]) & (rows.keys[:, 1] == wanted[:, 1])
        if (segments.ends - segments.starts).sum() < filled.rows:
            good &= segments.alive(places)
        if not good.all():
            position, places, rows = position[good], places[good], rows.chosen(good)
        if len(position) and np.bincount(position).max() > 1:
            rows = rows.chosen(np.sort(first_of(position, segments.turn(places), places)))
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
            hi, lo = (as_numbers(half) for half in rows.keys.T)
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
    con.register("incoming", with_halves(table))
    count, digest = con.execute(f"SELECT {DIGEST.format(KEY)} FROM incoming").fetchall()[0]  # noqa: S608
    con.unregister("incoming")
    return count, digest or 0


def _folder_of(path: Path) -> Path:
    return path.with_suffix(".index")


def _answers(keys: np.ndarray, completions: pa.Array) -> pa.Table:
    whole = pa.FixedSizeBinaryArray.from_buffers(ANSWERS.field("key").type, len(keys), [None, pa.py_buffer(keys)])
    return pa.table([whole, completions.cast(INDEXED.field("completions").type)], schema=ANSWERS)
