"""Opening a DuckDB file, with nothing that a file or a row could make DuckDB load, and what its errors mean."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb

from paraclip.storage.files import storage_error
from paraclip.storage.parquet import parquet_files
from paraclip_core.errors import ArtifactError, LockedError, one_line

FOREIGN_WAIT_SECONDS = 30.0
CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": "1GB",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
}
# A folder above the files may be called `licence=MIT` and is no column.
MOST_FREQUENT = """
    WITH files AS (SELECT * FROM read_parquet($parts, hive_partitioning = false)),
         counted AS (SELECT {column} AS value, count(*) AS rows FROM files GROUP BY ALL),
         ranked AS (SELECT *, row_number() OVER (ORDER BY rows DESC, value NULLS FIRST) AS place FROM counted)
    SELECT CASE WHEN place <= $limit THEN value END AS value, place > $limit AS rest, sum(rows), count(*)
    FROM ranked GROUP BY ALL ORDER BY rest, value NULLS FIRST
"""


def connect(path: Path) -> duckdb.DuckDBPyConnection:
    """A new DuckDB that works beside the file `path`: what does not fit into memory goes where the file's would."""
    return duckdb.connect(":memory:", config=CONFIG | {"temp_directory": f"{path}.tmp"})


@contextmanager
def opened(path: Path, name: str, read_only: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection of its own in which the file `path` is attached as `name`; closed at the end."""
    with connect(path) as con, attached(con, path, name, read_only):
        con.execute("SET preserve_insertion_order = false")
        yield con


@contextmanager
def attached(con: duckdb.DuckDBPyConnection, path: Path | str, name: str, read_only: bool = False) -> Iterator[None]:
    """Attach the file `path` as `name`, once no other program has it open; detach it at the end."""
    _attach(con, path, name, read_only)
    try:
        yield
    except BaseException:
        # Why this fails, too, is the error that is on its way.
        with suppress(duckdb.Error):
            _detach(con, name)
        raise
    _detach(con, name)


def _attach(con: duckdb.DuckDBPyConnection, path: Path | str, name: str, read_only: bool) -> None:
    started = time.monotonic()
    while True:
        try:
            con.execute(f"ATTACH ? AS {name}" + (" (READ_ONLY)" if read_only else ""), [str(path)])
            return
        except duckdb.Error as error:
            text = str(error)
            if "Could not set lock" not in text and "already attached" not in text:
                raise
            if time.monotonic() - started > FOREIGN_WAIT_SECONDS:
                raise LockedError(f"another program keeps {path} open; close it and run again ({text})") from error
            time.sleep(0.05)


def _detach(con: duckdb.DuckDBPyConnection, name: str) -> None:
    try:
        con.execute(f"DETACH {name}")
    except duckdb.TransactionException:
        # A statement failed within a transaction of the caller's.
        con.execute("ROLLBACK")
        con.execute(f"DETACH {name}")


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


def frequent_values(path: Path, column: str, limit: int = 30) -> dict[str, int]:
    """Rows of each of the `limit` most frequent values of a text column, by value; the others together at the end.

    A missing value counts as `unknown`. DuckDB counts within fixed memory.

    Args:
        path: a Parquet file, or a folder of them.
        column: name of the column, chosen by the caller's code and never by data.
        limit: values that are named.
    """
    files = [str(file) for file in parquet_files(path)]
    query = MOST_FREQUENT.format(column=f'"{column}"')
    try:
        with duckdb.connect(":memory:", config=CONFIG) as connection:
            rows = connection.execute(query, {"parts": files, "limit": limit}).fetchall()
    except duckdb.Error as error:
        raise environment_error(error, path) or ArtifactError(
            f"cannot count the values in {path}: {one_line(error)}; run again, or have its stage made again"
        ) from error
    counted: dict[str, int] = {}
    for value, rest, count, values in rows:
        name = f"{values} others" if rest else ("unknown" if value is None else value)
        counted[name] = counted.get(name, 0) + int(count)
    return counted
