"""Parquet files that appear whole, written and read in streams, and counted by DuckDB."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from paraclip.storage.files import write_atomic
from paraclip_core.errors import ArtifactError
from paraclip_core.tables import DUCKDB as CONFIG
from paraclip_core.text_safety import one_line

# A folder above the files may be called `license=MIT` and is no column.
MOST_FREQUENT = """
    WITH files AS (SELECT * FROM read_parquet($parts, hive_partitioning = false)),
         counted AS (SELECT {column} AS value, count(*) AS rows FROM files GROUP BY ALL),
         ranked AS (SELECT *, row_number() OVER (ORDER BY rows DESC, value NULLS FIRST) AS place FROM counted)
    SELECT CASE WHEN place <= $limit THEN value END AS value, place > $limit AS rest, sum(rows), count(*)
    FROM ranked GROUP BY ALL ORDER BY rest, value NULLS FIRST
"""


class PartWriter:
    """Writes record batches as ``<stem>-00000.parquet``, ``<stem>-00001.parquet`` … of bounded size.

    Each part is written atomically when it is full. Memory holds one part at most. The same batches give the same
    bytes, however they are split.
    """

    def __init__(self, folder: Path, schema: pa.Schema, stem: str = "part", rows: int = 100_000) -> None:
        """Write into `folder` parts of `rows` rows."""
        self._folder, self._schema, self._stem, self._rows = folder, schema, stem, rows
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self._part = 0
        self.rows_written = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Add a batch; full parts go to disk."""
        while batch.num_rows:
            head = batch.slice(0, self._rows - self._waiting_rows)
            self._waiting.append(head)
            self._waiting_rows += head.num_rows
            batch = batch.slice(head.num_rows)
            if self._waiting_rows == self._rows:
                self._flush()

    def close(self, empty: bool = True) -> None:
        """Write what is left; a writer that got no rows writes a part if `empty`, so that the schema is known."""
        if self._waiting_rows or (empty and not self._part):
            self._flush()

    def _flush(self) -> None:
        table = pa.Table.from_batches(self._waiting, schema=self._schema)
        write_table(self._folder / f"{self._stem}-{self._part:05d}.parquet", table)
        self.rows_written += table.num_rows
        self._waiting, self._waiting_rows = [], 0
        self._part += 1


def write_table(path: Path, table: pa.Table) -> None:
    """Write one Parquet file atomically (zstd, one row group per 100,000 rows)."""
    table = table.combine_chunks()
    write_atomic(path, lambda file: pq.write_table(table, file, compression="zstd", row_group_size=100_000))


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a folder in order; the path of a single file stands for itself."""
    if folder.is_file():
        return [folder]
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise ArtifactError(f"no Parquet file in {folder}")
    return files


def iter_batches(
    folder: Path, columns: Sequence[str] | None = None, batch_rows: int = 65_536
) -> Iterator[pa.RecordBatch]:
    """Record batches of all parts in order, `columns` only."""
    for path in parquet_files(folder):
        try:
            with pq.ParquetFile(path) as file:
                # pyarrow ignores a missing column.
                if missing := [name for name in columns or () if name not in file.schema_arrow.names]:
                    raise ArtifactError(f"{path} lacks the column {missing[0]!r}")
                yield from file.iter_batches(batch_size=batch_rows, columns=list(columns) if columns else None)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ArtifactError(f"{path} cannot be read as Parquet: {error}") from error


def read_table(folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """All parts as one table, in order; for tables that fit into memory."""
    batches: Iterable[pa.RecordBatch] = list(iter_batches(folder, columns))
    if batches:
        return pa.Table.from_batches(batches)
    schema = pq.read_schema(parquet_files(folder)[0])
    chosen = [schema.field(name) for name in columns] if columns else list(schema)
    return pa.schema(chosen).empty_table()


def count_rows(folder: Path) -> int:
    """Rows of all parts, from their footers."""
    return sum(pq.read_metadata(path).num_rows for path in parquet_files(folder))


def frequent_values(path: Path, column: str, limit: int = 30) -> dict[str, int]:
    """Rows of each of the `limit` most frequent values of a text column, by value; the others together at the end.

    A missing value counts as `unknown`. DuckDB counts within fixed memory. `column` never comes from data.
    """
    import duckdb

    files = [str(file) for file in parquet_files(path)]
    query = MOST_FREQUENT.format(column=f'"{column}"')
    try:
        with duckdb.connect(":memory:", config=CONFIG) as connection:
            rows = connection.execute(query, {"parts": files, "limit": limit}).fetchall()
    except duckdb.Error as error:
        raise ArtifactError(
            f"cannot count the values in {path}: {one_line(error)}; run again, or have its stage made again"
        ) from error
    counted: dict[str, int] = {}
    for value, rest, count, values in rows:
        name = f"{values} others" if rest else ("unknown" if value is None else value)
        counted[name] = counted.get(name, 0) + int(count)
    return counted
