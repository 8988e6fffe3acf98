"""Counting the values of a column, however many rows and different values there are."""

from __future__ import annotations

from pathlib import Path

import duckdb

from paraclip_core.errors import ArtifactError, one_line
from storage.duckdb_file import CONFIG, environment_error
from storage.parquet import parquet_files

__all__ = ["frequent_values"]

# A folder above the files may be called `licence=MIT` and is no column.
MOST_FREQUENT = """
    WITH files AS (SELECT * FROM read_parquet($parts, hive_partitioning = false)),
         counted AS (SELECT {column} AS value, count(*) AS rows FROM files GROUP BY ALL),
         ranked AS (SELECT *, row_number() OVER (ORDER BY rows DESC, value NULLS FIRST) AS place FROM counted)
    SELECT CASE WHEN place <= $limit THEN value END AS value, place > $limit AS rest, sum(rows), count(*)
    FROM ranked GROUP BY ALL ORDER BY rest, value NULLS FIRST
"""


def frequent_values(path: Path, column: str, limit: int = 30) -> dict[str, int]:
    """Rows of each of the `limit` most frequent values of a text column, by value; the others together at the end.

    A missing value counts as `unknown`. DuckDB counts within fixed memory.

    Args:
        path: a Parquet file, or a folder of them.
        column: name of the column, chosen by the caller's code and never by data.
        limit: values that are named.

    Raises:
        ArtifactError: there is no Parquet file, or one cannot be read.
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
