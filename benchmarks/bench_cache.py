"""The answers cache against SQLite: insert the same rows and join all of their keys, in one run.

    python benchmarks/bench_cache.py [--rows 1e6] [--repeat 3]

Ours keeps Parquet parts and follows with its DuckDB file. SQLite has a primary key, write-ahead logging, `synchronous =
NORMAL`, one `executemany` and one transaction per batch. Then both are asked which of as many keys they lack, as a
round of paraphrasing does: with an anti-join, SQLite with 30,000 keys per statement in `IN`, which beats a join with a
temporary table and one statement per key. One key in ten is new.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from record import arguments, in_turns, record

from paraclip.storage.answers import AnswerStore
from paraclip_core.tables import GENERATIONS

SQLITE_KEYS = 30_000
NEW = 10
"""One in this many keys that are asked for is missing."""


def random_keys(count: int, seed: int) -> pa.FixedSizeBinaryArray:
    """Random keys; no other seed gives the same ones."""
    data = pa.py_buffer(np.random.default_rng(seed).bytes(16 * count))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), count, [None, data])


def batches(rows: int, size: int) -> Iterator[tuple[int, int]]:
    """Seed and size of each batch of the rows."""
    for seed, start in enumerate(range(0, rows, size)):
        yield seed, min(size, rows - start)


def generations(rows: int, seed: int) -> pa.Table:
    """Random keys, each with an answer of about 60 characters."""
    rng, words = np.random.default_rng(seed), pa.array([f"word{n}" for n in range(5000)])

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


class Ours:
    """The cache of a root."""

    def __init__(self, folder: Path) -> None:
        self.store = AnswerStore(folder / "cache")

    def insert(self, tables: Sequence[pa.Table]) -> None:
        """Store rows, and bring the DuckDB file up to date."""
        for table in tables:
            self.store.append(table)
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

    def insert(self, tables: Sequence[pa.Table]) -> None:
        """Store rows, answers as JSON."""
        answers = GENERATIONS.names.index("completions")
        marks = ", ".join("?" * len(GENERATIONS))
        with closing(sqlite3.connect(self.path)) as con:
            con.execute("PRAGMA synchronous = NORMAL")
            for table in tables:
                columns = [column.to_pylist() for column in table.columns]
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


def main() -> None:
    """Run both sides in turn; record rows and keys per second."""
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=float, default=1e6)
    parser.add_argument("--batch", type=int, default=100_000, help="rows of a transaction, on both sides")
    parser.add_argument("--repeat", type=int, default=3, help="of the join; rows are inserted once")
    chosen = parser.parse_args()
    rows, parts = int(chosen.rows), list(batches(int(chosen.rows), chosen.batch))
    tables = [generations(count, seed) for seed, count in parts]
    asked = [random_keys(count, seed)[count // NEW :] for seed, count in parts]
    asked += [random_keys(count // NEW, len(parts) + seed) for seed, count in parts]
    keys = pa.chunked_array(asked)
    with tempfile.TemporaryDirectory() as folder:
        ours, sqlite = Ours(Path(folder)), Sqlite(Path(folder))
        insert = in_turns({"ours": lambda _: ours.insert(tables), "sqlite": lambda _: sqlite.insert(tables)}, 1)
        assert ours.missing(keys) == sqlite.missing(keys) == sum(count // NEW for _, count in parts)
        sides = {"ours": lambda _: ours.missing(keys), "sqlite": lambda _: sqlite.missing(keys)}
        lookup = in_turns(sides, chosen.repeat)
    for what, unit, seconds in (("insert", "rows/s", insert), ("lookup", "keys/s", lookup)):
        ratio = seconds["sqlite"] / seconds["ours"]
        record(f"cache_{what}_vs_sqlite", rows / seconds["ours"], unit, f"sqlite3, {rows:,} rows", ratio)


if __name__ == "__main__":
    main()
