"""DuckDB with nothing that a file or a row could make it load, and what its errors mean."""

from __future__ import annotations

import errno
from pathlib import Path

import duckdb

from paraclip.storage.files import storage_error
from paraclip.storage.parquet import parquet_files
from paraclip_core.errors import ArtifactError, one_line

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
