"""The answers cache against SQLite: the same rows inserted, and all of their keys joined, in one run.

    python benchmarks/bench_cache.py [--rows 1e6,1e7] [--repeat 3]

Ours keeps Parquet parts and follows with its DuckDB file. SQLite has a primary key, write-ahead logging, `synchronous =
NORMAL`, one `executemany` and one transaction a batch. Then both are asked which of so many keys they do not have, as
a round of paraphrasing does: with an anti-join, SQLite with 30,000 keys a statement behind `IN`, which beats a join
with a temporary table and one statement a key. One key in ten is new.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from record import record

from paraclip.storage.answers import AnswerStore
from paraclip_core.tables import GENERATIONS

PIECE = 1_000_000
"""Rows that are made, and keys that SQLite is asked for, at once, however many there are."""
SQLITE_KEYS = 30_000
NEW = 10
"""One in so many keys that are asked for is not there."""


def generations(rows: int, seed: int) -> pa.Table:
    """Random keys, each with an answer of about 60 characters."""
    rng = np.random.default_rng(seed)
    words = pa.array([f"word{n}" for n in range(5000)])

    def texts() -> pa.Array:
        columns = (words.take(pa.array(rng.integers(0, 5000, rows, dtype=np.int32))) for _ in range(8))
        return pc.call_function("binary_join_element_wise", [*columns, pa.scalar(" ")])

    values = {
        "key": random_keys(rows, seed),
        "input": texts(),
        "completions": pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), texts()),
        "prompt_hash": pa.repeat(pa.scalar(bytes(16), pa.binary(16)), rows),
        "sampling": pa.repeat('{"max_new_tokens":40,"n":1,"temperature":0.7,"top_p":0.9}', rows),
        **{name: pa.repeat(name, rows) for name in ("engine", "model", "prompt")},
    }
    columns = [
        values[field.name] if field.name in values else pa.repeat(pa.scalar(1, field.type), rows)
        for field in GENERATIONS
    ]
    return pa.table(columns, schema=GENERATIONS)


def random_keys(count: int, seed: int) -> pa.FixedSizeBinaryArray:
    """Keys that no other seed gives."""
    data = pa.py_buffer(np.random.default_rng([seed, 1]).bytes(16 * count))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), count, [None, data])


def pieces(rows: int) -> Iterator[tuple[int, int]]:
    """Seed and size of each piece of the rows."""
    for seed, start in enumerate(range(0, rows, PIECE)):
        yield seed, min(PIECE, rows - start)


def asked_keys(rows: int) -> pa.ChunkedArray:
    """As many keys as there are rows: all but a tenth are there."""
    parts = []
    for seed, count in pieces(rows):
        new = count // NEW
        parts += [random_keys(count, seed)[new:], random_keys(new, 10_000 + seed)]
    return pa.chunked_array(parts)


class Ours:
    """The cache of a root."""

    def __init__(self, folder: Path) -> None:
        self.store = AnswerStore(folder / "cache")

    def insert(self, table: pa.Table, batch: int) -> None:
        """Keep rows, and let the DuckDB file follow."""
        for start in range(0, table.num_rows, batch):
            self.store.append(table.slice(start, batch))
        self.store.close()

    def missing(self, keys: pa.ChunkedArray) -> int:
        """How many keys are not there."""
        asked = pa.table({"key": keys})
        with duckdb.connect(":memory:") as con:
            con.register("asked", asked)
            with self.store.attached(con):
                query = "SELECT count(*) FROM asked ANTI JOIN cache.generations g ON g.key = asked.key"
                return con.execute(query).fetchall()[0][0]


class Sqlite:
    """A table with a primary key."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cache.sqlite"
        with closing(sqlite3.connect(self.path)) as con:
            con.execute("PRAGMA journal_mode = WAL")
            columns = ", ".join(GENERATIONS.names[1:])
            con.execute(f"CREATE TABLE generations (key BLOB PRIMARY KEY, {columns})")

    def insert(self, table: pa.Table, batch: int) -> None:
        """Keep rows, answers as JSON."""
        marks = ", ".join("?" * table.num_columns)
        answers = GENERATIONS.names.index("completions")
        with closing(sqlite3.connect(self.path)) as con:
            con.execute("PRAGMA synchronous = NORMAL")
            for start in range(0, table.num_rows, batch):
                columns = [column.to_pylist() for column in table.slice(start, batch).columns]
                columns[answers] = [json.dumps(texts) for texts in columns[answers]]
                rows = zip(*columns, strict=True)
                con.executemany(f"INSERT OR IGNORE INTO generations VALUES ({marks})", rows)  # noqa: S608 (marks only)
                con.commit()

    def missing(self, keys: pa.ChunkedArray) -> int:
        """How many keys are not there."""
        there = 0
        with closing(sqlite3.connect(self.path)) as con:
            for start in range(0, len(keys), SQLITE_KEYS):
                asked = keys.slice(start, SQLITE_KEYS).to_pylist()
                marks = ", ".join("?" * len(asked))
                query = f"SELECT count(*) FROM generations WHERE key IN ({marks})"  # noqa: S608 (marks only)
                there += con.execute(query, asked).fetchall()[0][0]
        return len(keys) - there


def timed(work: Callable[..., object], *arguments: object) -> float:
    """Wall seconds of a call."""
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def compare(rows: int, batch: int, repeat: int) -> None:
    """Both sides in turn at one size; print and record nanoseconds a row and key."""
    seconds: dict[tuple[str, str], list[float]] = {}
    keys = asked_keys(rows)
    with tempfile.TemporaryDirectory() as folder:
        sides = {"ours": Ours(Path(folder)), "sqlite": Sqlite(Path(folder))}
        insert = dict.fromkeys(sides, 0.0)
        for seed, count in pieces(rows):
            table = generations(count, seed)
            for name, side in sides.items():
                insert[name] += timed(side.insert, table, batch)
        for name, value in insert.items():
            seconds["insert", name] = [value]
        counts = {name: side.missing(keys) for name, side in sides.items()}
        assert counts == dict.fromkeys(sides, sum(count // NEW for _, count in pieces(rows))), counts
        for _ in range(repeat):
            for name, side in sides.items():
                seconds.setdefault(("lookup", name), []).append(timed(side.missing, keys))
    for what, unit in (("insert", "rows/s"), ("lookup", "keys/s")):
        ours, sqlite = (statistics.median(seconds[what, name]) for name in sides)
        print({"rows": rows, what: round(1e9 * ours / rows), "sqlite": round(1e9 * sqlite / rows)}, "ns each")
        record(f"cache_{what}_vs_sqlite", rows / ours, unit, f"sqlite3, {rows:,} rows", sqlite / ours)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1e6", help="one size, or several with commas")
    parser.add_argument("--batch", type=int, default=100_000, help="rows of a transaction, on both sides")
    parser.add_argument("--repeat", type=int, default=3, help="of the join; rows are inserted once")
    chosen = parser.parse_args()
    for rows in sorted(int(float(size)) for size in chosen.rows.split(",")):
        compare(rows, chosen.batch, chosen.repeat)


if __name__ == "__main__":
    main()
