"""The generation cache against SQLite: bulk inserts and bulk lookups of the same rows, in one run.

Each side gets the same Arrow table and hands back the same Arrow table. Ours writes its Parquet segments and its
index. SQLite has a primary key, write-ahead logging, `synchronous = NORMAL` and one transaction a batch, and looks up
30,000 keys a statement with `IN`, which beat a join with a temporary table and one statement a key. It is not SQLite's
best at both: with a clustered key (`WITHOUT ROWID`), one trial of 400,000 rows took about a sixth less processor time
for lookups and twice as much for inserts.
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

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from record import record

from paraclip_core.tables import GENERATIONS
from storage.generations import GenerationStore

COLUMNS = ", ".join(GENERATIONS.names)
SQLITE_KEYS = 30_000
MARKS = ", ".join("?" * len(GENERATIONS.names))


def generations(rows: int, completions: int, seed: int = 0) -> pa.Table:
    """Random keys with captions of about 60 characters."""
    rng = np.random.default_rng(seed)
    words = pa.array([f"word{n}" for n in range(5000)])

    def texts(count: int) -> pa.Array:
        chosen = (words.take(pa.array(rng.integers(0, 5000, count, dtype=np.int32))) for _ in range(8))
        return pc.call_function("binary_join_element_wise", [*chosen, pa.scalar(" ")])

    def same(value: object, kind: pa.DataType) -> pa.Array:
        return pa.repeat(pa.scalar(value, kind), rows)

    offsets = pa.array(np.arange(0, rows * completions + 1, completions, dtype=np.int32))
    values: dict[str, pa.Array] = {
        "key": pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), rows, [None, pa.py_buffer(rng.bytes(16 * rows))]),
        "input": texts(rows),
        "model": same("smollm2-135m-instruct@q8_0", pa.string()),
        "prompt": same("small-few-shot", pa.string()),
        "engine": same("smollm2", pa.string()),
        "sampling": same('{"max_new_tokens":40,"n":1,"temperature":0.7,"top_p":0.9}', pa.string()),
        "prompt_hash": same(bytes(16), pa.binary(16)),
        "completions": pa.ListArray.from_arrays(offsets, texts(rows * completions)),
    }
    columns = [values[field.name] if field.name in values else same(1, field.type) for field in GENERATIONS]
    return pa.table(columns, schema=GENERATIONS)


def batches(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows)


def insert_ours(folder: Path, table: pa.Table, batch: int) -> None:
    store = GenerationStore(folder)
    for part in batches(table, batch):
        store.append(part)
    store.close()


def insert_sqlite(path: Path, table: pa.Table, batch: int) -> None:
    with closing(sqlite3.connect(path)) as con:
        con.execute("PRAGMA journal_mode = WAL")
        con.execute("PRAGMA synchronous = NORMAL")
        con.execute("CREATE TABLE generations (key BLOB PRIMARY KEY, " + COLUMNS.partition(", ")[2] + ")")
        for part in batches(table, batch):
            columns = [column.to_pylist() for column in part.columns]
            at = GENERATIONS.names.index("completions")
            columns[at] = [json.dumps(answers) for answers in columns[at]]
            con.executemany(f"INSERT OR IGNORE INTO generations VALUES ({MARKS})", zip(*columns, strict=True))  # noqa: S608
            con.commit()


def lookup_ours(folder: Path, keys: pa.FixedSizeBinaryArray) -> pa.Table:
    return GenerationStore(folder).lookup(keys)


def lookup_sqlite(path: Path, keys: pa.FixedSizeBinaryArray) -> pa.Table:
    parts = []
    with closing(sqlite3.connect(path)) as con:
        for start in range(0, len(keys), SQLITE_KEYS):
            asked = keys[start : start + SQLITE_KEYS].to_pylist()
            marks = ", ".join("?" * len(asked))
            found = con.execute(f"SELECT key, completions FROM generations WHERE key IN ({marks})", asked).fetchall()  # noqa: S608
            answers = pa.array([json.loads(text) for _, text in found], pa.list_(pa.string()))
            parts.append(pa.table({"key": pa.array([key for key, _ in found], pa.binary(16)), "completions": answers}))
    return pa.concat_tables(parts)


def timed(work: Callable[..., object], *arguments: object) -> float:
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=100_000)
    parser.add_argument("--completions", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    rows, batch = options.rows, options.batch
    table = generations(rows, options.completions)
    keys = table.column("key").combine_chunks().take(pa.array(np.random.default_rng(1).permutation(rows)))
    seconds: dict[str, list[float]] = {"insert": [], "insert_sqlite": [], "lookup": [], "lookup_sqlite": []}
    for turn in range(options.repeat):
        with tempfile.TemporaryDirectory() as name:
            ours, sqlite = Path(name) / "cache", Path(name) / "cache.sqlite"
            seconds["insert"].append(timed(insert_ours, ours, table, batch))
            seconds["insert_sqlite"].append(timed(insert_sqlite, sqlite, table, batch))
            seconds["lookup"].append(timed(lookup_ours, ours, keys))
            seconds["lookup_sqlite"].append(timed(lookup_sqlite, sqlite, keys))
            if not turn:
                found, expected = lookup_ours(ours, keys), lookup_sqlite(sqlite, keys)
                assert found.num_rows == rows
                assert found.sort_by("key").equals(expected.sort_by("key").cast(found.schema))
        print({name: round(values[-1], 3) for name, values in seconds.items()})
    for what in ("insert", "lookup"):
        mine, theirs = (statistics.median(seconds[name]) for name in (what, f"{what}_sqlite"))
        unit = "rows/s" if what == "insert" else "keys/s"
        record(f"cache_{what}_vs_sqlite", rows / mine, unit, "sqlite3", theirs / mine)


if __name__ == "__main__":
    main()
