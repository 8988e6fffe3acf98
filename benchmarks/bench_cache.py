"""The generation cache against SQLite and diskcache: bulk inserts and bulk lookups of the same rows, in one run.

Each side gets the same Arrow tables and hands back the same Arrow table. Ours writes its Parquet segments and its
index. SQLite has a primary key, write-ahead logging, `synchronous = NORMAL` and one `executemany` and one transaction a
batch, and looks up 30,000 keys a statement with `IN`, which beat a join with a temporary table and one statement a
key. It is not SQLite's best at both: with a clustered key (`WITHOUT ROWID`), one trial of 400,000 rows took about a
sixth less processor time for lookups and twice as much for inserts. diskcache keeps the same values as one JSON text a
key, one transaction a batch, and gets fewer rows, as it takes a call for each: its figure is per row of those.

``--rows 1e6,5e6,20e6`` shows whether the cost per key stays: ours alone grows, and is asked at each size for a
million keys from everywhere and for some thousand neighbours, as a stage does, which keeps the cache open. Both sides
are compared at the first size. Its figures are processor time, as the disk's and the machine's other work would hide
what grows.
``--plot growth.svg`` draws them.
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
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from record import record

from paraclip_core.tables import GENERATIONS
from storage.generations import GenerationStore

COLUMNS = ", ".join(GENERATIONS.names)
SQLITE_KEYS = 30_000
MARKS = ", ".join("?" * len(GENERATIONS.names))
PIECE = 1_000_000
"""Rows that are made, and keys that are asked for, at once, however many there are."""
NEIGHBOURS = 65_536
"""Keys that were kept one after another, as many as a paraphrase stage asks for at once."""


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


def plain_columns(table: pa.Table) -> list[list[Any]]:
    """The columns as Python values, completions as JSON."""
    columns = [column.to_pylist() for column in table.columns]
    at = GENERATIONS.names.index("completions")
    columns[at] = [json.dumps(answers) for answers in columns[at]]
    return columns


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
            rows = zip(*plain_columns(part), strict=True)
            con.executemany(f"INSERT OR IGNORE INTO generations VALUES ({MARKS})", rows)  # noqa: S608
            con.commit()


def insert_diskcache(folder: Path, table: pa.Table, batch: int) -> None:
    import diskcache

    with closing(diskcache.Cache(str(folder), eviction_policy="none")) as cache:
        for part in batches(table, batch):
            columns = plain_columns(part)
            with cache.transact():
                for key, *values in zip(*columns, strict=True):
                    cache.set(key, json.dumps(values, default=bytes.hex))


def lookup_ours(folder: Path, keys: pa.FixedSizeBinaryArray) -> pa.Table:
    return GenerationStore(folder).lookup(keys)


def lookup_sqlite(path: Path, keys: pa.FixedSizeBinaryArray) -> pa.Table:
    parts = []
    with closing(sqlite3.connect(path)) as con:
        for start in range(0, len(keys), SQLITE_KEYS):
            asked = keys[start : start + SQLITE_KEYS].to_pylist()
            marks = ", ".join("?" * len(asked))
            found = con.execute(f"SELECT key, completions FROM generations WHERE key IN ({marks})", asked).fetchall()  # noqa: S608
            parts.append(answers([key for key, _ in found], [text for _, text in found]))
    return pa.concat_tables(parts)


def lookup_diskcache(folder: Path, keys: pa.FixedSizeBinaryArray) -> pa.Table:
    import diskcache

    at = GENERATIONS.names.index("completions") - 1
    asked = keys.to_pylist()
    with closing(diskcache.Cache(str(folder), eviction_policy="none")) as cache:
        found = [cache.get(key) for key in asked]
    return answers(asked, [json.loads(str(text))[at] for text in found])


def answers(keys: list[bytes], completions: list[str]) -> pa.Table:
    texts = pa.array([json.loads(text) for text in completions], pa.list_(pa.string()))
    return pa.table({"key": pa.array(keys, pa.binary(16)), "completions": texts})


def timed(work: Callable[..., object], *arguments: object) -> float:
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def shuffled(table: pa.Table) -> pa.FixedSizeBinaryArray:
    order = np.random.default_rng(1).permutation(table.num_rows)
    return table.column("key").combine_chunks().take(pa.array(order))


def compare(rows: int, few: int, options: argparse.Namespace) -> None:
    """Insert and look up `rows` with each side in turn, `few` of them with diskcache; print and record the medians."""
    table = generations(rows, options.completions)
    keys = shuffled(table)
    some, some_keys = table.slice(0, few), shuffled(table.slice(0, few))
    seconds: dict[str, list[float]] = {}

    def measure(name: str, count: int, work: Callable[..., object], *arguments: object) -> None:
        seconds.setdefault(name, []).append(timed(work, *arguments) / count)

    for turn in range(options.repeat):
        with tempfile.TemporaryDirectory() as name:
            ours, sqlite, disk = Path(name) / "cache", Path(name) / "cache.sqlite", Path(name) / "diskcache"
            measure("insert", rows, insert_ours, ours, table, options.batch)
            measure("insert_sqlite", rows, insert_sqlite, sqlite, table, options.batch)
            measure("lookup", rows, lookup_ours, ours, keys)
            measure("lookup_sqlite", rows, lookup_sqlite, sqlite, keys)
            if few:
                measure("insert_diskcache", few, insert_diskcache, disk, some, options.batch)
                measure("lookup_diskcache", few, lookup_diskcache, disk, some_keys)
            if not turn:
                found = lookup_ours(ours, keys).sort_by("key")
                assert found.num_rows == rows
                assert found.equals(lookup_sqlite(sqlite, keys).sort_by("key").cast(found.schema))
                if few:
                    wanted = lookup_diskcache(disk, some_keys).sort_by("key").cast(found.schema)
                    assert lookup_ours(ours, some_keys).sort_by("key").equals(wanted)
        print({name: round(1e9 * values[-1]) for name, values in seconds.items()}, "ns a row")
    for what, unit in (("insert", "rows/s"), ("lookup", "keys/s")):
        mine, sqlite_, disk_ = (
            statistics.median(seconds.get(name, [0.0])) for name in (what, f"{what}_sqlite", f"{what}_diskcache")
        )
        record(f"cache_{what}_vs_sqlite", 1 / mine, unit, "sqlite3", sqlite_ / mine)
        if few:
            record(f"cache_{what}_vs_diskcache", 1 / mine, unit, f"diskcache with {few} rows", disk_ / mine)


def processor_seconds(work: Callable[..., object], *arguments: object) -> float:
    started = time.process_time()
    work(*arguments)
    return time.process_time() - started


def grow(sizes: list[int], options: argparse.Namespace) -> list[dict[str, float]]:
    """Let one cache grow; at each size, nanoseconds of processor time to insert a row and to look up a key."""
    points: list[dict[str, float]] = []
    texts = generations(min(PIECE, sizes[0]), options.completions)
    with tempfile.TemporaryDirectory() as name:
        folder, there = Path(name) / "cache", 0
        keys: list[pa.FixedSizeBinaryArray] = []
        for size in sizes:
            spent, before = 0.0, there
            while there < size:
                count = min(texts.num_rows, size - there)
                random = pa.py_buffer(np.random.default_rng(there).bytes(16 * count))
                keys.append(pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), count, [None, random]))
                table = texts.slice(0, count).set_column(0, GENERATIONS.field("key"), keys[-1])
                spent += processor_seconds(insert_ours, folder, table, options.batch)
                there += count
            # The same number of keys at every size, from everywhere.
            share = -(-texts.num_rows // len(keys))
            asked = pa.concat_arrays(
                [part.take(pa.array(np.arange(0, len(part), len(part) // share)[:share])) for part in keys]
            )
            asked = asked.take(pa.array(np.random.default_rng(0).permutation(len(asked))))
            neighbours = keys[len(keys) // 2][:NEIGHBOURS]
            point = {"rows": there, "insert": 1e9 * spent / (there - before)}
            store = GenerationStore(folder)
            for what, chosen in (("scattered", asked), ("neighbours", neighbours)):
                assert store.lookup(chosen).num_rows == len(chosen)
                seconds = (processor_seconds(store.lookup, chosen) for _ in range(options.repeat))
                point[what] = 1e9 * statistics.median(seconds) / len(chosen)
            index = (folder / "generations.duckdb").stat().st_size
            index += sum(path.stat().st_size for path in folder.glob("generations.*/*"))
            point["index_bytes"] = index / there
            points.append({name: round(value) for name, value in point.items()})
            print(json.dumps(points[-1]), flush=True)
    first, last = points[0], points[-1]
    against = f"{first['rows']} rows instead of {last['rows']}"
    record("cache_lookup_growth", 1e9 / last["scattered"], "keys/s", against, first["scattered"] / last["scattered"])
    return points


def draw(points: list[dict[str, float]], path: Path) -> None:
    """The cost of a row and of a key against the rows that are there."""
    import matplotlib

    matplotlib.use("svg" if path.suffix == ".svg" else "agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "paraclip"
    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    rows = [point["rows"] / 1e6 for point in points]
    for what, label in (
        ("insert", "insert a row"),
        ("scattered", "look up one of a million keys from everywhere"),
        ("neighbours", f"look up one of {NEIGHBOURS:,} neighbours"),
    ):
        axes.plot(rows, [point[what] / 1000 for point in points], marker="o", label=label)
    axes.set(xlabel="million rows in the cache", ylabel="µs of processor time", ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1e6", help="one size, or several with commas")
    parser.add_argument("--diskcache-rows", type=int, default=20_000, help="0 leaves diskcache out")
    parser.add_argument("--batch", type=int, default=200_000, help="rows of a transaction, on all sides")
    parser.add_argument("--completions", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--grow-only", action="store_true", help="compare with nothing")
    parser.add_argument("--plot", type=Path, help="draw how costs grow into this SVG or PNG file")
    options = parser.parse_args()
    sizes = sorted(int(float(size)) for size in options.rows.split(","))
    if len(sizes) > 1:
        points = grow(sizes, options)
        if options.plot:
            draw(points, options.plot)
    if not options.grow_only:
        compare(sizes[0], min(options.diskcache_rows, sizes[0]), options)


if __name__ == "__main__":
    main()
