"""The tables of one step in DuckDB: what its rows ask, and what of it the cache has not answered or not judged.

`asked` has a row for each row of the step and attempt. Everything that a step needs to know is a join of it with the
cache's two tables, `cache.generations` and `cache.verdicts`, over all rows at once. Texts stay in the step's Parquet
files and are read again for the rows that need them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from paraclip_core.paraphrase.protocol import GenerationCache
from paraclip_core.paraphrase.requests import Batches, RequestKeys, RowCursor, source_column
from paraclip_core.tables import ANSWERS

__all__ = ["NO_PARENT", "StepTables"]

CONFIG: dict[str, Any] = {
    "memory_limit": "1GB",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
}
TAKEN_ROWS = 65_536
NO_PARENT = bytes(16)
"""Parent of step 1's generations: they come from no other."""

# `parent` is null at step 1; a constant of 16 bytes for each of ten million rows would be 300 MB.
JUDGED = """
CREATE OR REPLACE VIEW judged AS
SELECT a.row, a.attempt, a.key, v.accepted, v.answer, v.reason, v.detail, v.similarity
FROM asked a JOIN cache.verdicts v ON v.generation = a.key AND v.parent = coalesce(a.parent, getvariable('no_parent'))
WHERE v.gates = getvariable('gates')
"""


class StepTables:
    """What one step asks, beside what the cache holds; close it at the end."""

    def __init__(self, step: int, cache: GenerationCache, batches: Batches, gates: bytes, scratch: Path) -> None:
        """Begin with nothing asked.

        Args:
            step: 1 or 2.
            cache: where generations and verdicts are kept.
            batches: reads the step's rows.
            gates: digest of the gates whose verdicts count.
            scratch: folder for what does not fit into memory, and for intermediate files.
        """
        self.step, self.cache, self.batches, self.scratch = step, cache, batches, scratch
        scratch.mkdir(parents=True, exist_ok=True)
        self.con = duckdb.connect(":memory:", config=CONFIG | {"temp_directory": str(scratch / "duckdb.tmp")})
        self.con.execute("CREATE TABLE asked (row BIGINT, attempt SMALLINT, key BLOB, parent BLOB)")
        self.con.execute("SET VARIABLE gates = ?::BLOB", [gates])
        self.con.execute("SET VARIABLE no_parent = ?::BLOB", [NO_PARENT])
        self.rows = 0
        """Rows of the step, known once the first attempt is asked."""

    def close(self) -> None:
        """Give back memory and temporary files."""
        self.con.close()

    def ask(self, request: RequestKeys, rows: np.ndarray | None = None) -> None:
        """Add the requests of one attempt for the rows with these numbers (int64, ascending), or for all rows."""
        source = source_column(self.step)
        batches = self.batches([source] if self.step == 1 else [source, "generation_1"])
        if rows is None:
            self.rows = 0
            for batch in batches:
                self._insert(request, np.arange(self.rows, self.rows + batch.num_rows), batch)
                self.rows += batch.num_rows
            return
        cursor = RowCursor(batches)
        for start in range(0, len(rows), TAKEN_ROWS):
            numbers = rows[start : start + TAKEN_ROWS]
            self._insert(request, numbers, cursor.take(numbers))

    def _insert(self, request: RequestKeys, numbers: np.ndarray, batch: pa.RecordBatch | pa.Table) -> None:
        keys = request.keys(batch.column(source_column(self.step)).to_pylist())
        parents = batch.column("generation_1") if self.step == 2 else pa.nulls(batch.num_rows, pa.binary(16))
        attempts = pa.repeat(pa.scalar(request.attempt, pa.int16()), batch.num_rows)
        columns = [pa.array(numbers), attempts, keys, parents]
        self.con.register("fresh", pa.Table.from_arrays(columns, ["row", "attempt", "key", "parent"]))
        self.con.execute("INSERT INTO asked SELECT * FROM fresh")
        self.con.unregister("fresh")

    def requests(self, attempt: int) -> int:
        """Different requests of an attempt."""
        return self._count("SELECT count(DISTINCT key) FROM asked WHERE attempt = ?", attempt)

    def missing(self, attempt: int) -> np.ndarray:
        """Rows (int64, ascending) whose request has no answer, the first one of each request."""
        with self.cache.attached(self.con):
            return self._numbers(
                "SELECT min(a.row) AS row FROM asked a ANTI JOIN cache.generations g ON g.key = a.key "
                "WHERE a.attempt = ? GROUP BY a.key ORDER BY 1",
                attempt,
            )

    def find_unjudged(self, attempt: int, rows: np.ndarray | None = None) -> int:
        """Collect the answers without a verdict, of all rows or of these alone, for :meth:`unjudged`; their number."""
        chosen = None if rows is None else rows.tolist()
        with self.cache.attached(self.con):
            self.con.execute(
                "CREATE OR REPLACE TABLE unjudged AS "
                "SELECT min(a.row) AS row, a.key, a.parent, any_value(g.completions) AS completions "
                "FROM asked a JOIN cache.generations g ON g.key = a.key "
                "ANTI JOIN (SELECT * FROM cache.verdicts WHERE gates = getvariable('gates')) v "
                "ON v.generation = a.key AND v.parent = coalesce(a.parent, getvariable('no_parent')) "
                "WHERE a.attempt = ? AND (?::BIGINT[] IS NULL OR list_contains(?::BIGINT[], a.row)) "
                "GROUP BY a.key, a.parent",
                [attempt, chosen, chosen],
            )
        return self._count("SELECT count(*) FROM unjudged")

    def unjudged(self, block_rows: int) -> Generator[pa.RecordBatch, None, None]:
        """Blocks (`tables.ANSWERS`) of what :meth:`find_unjudged` collected, by row."""
        source = source_column(self.step)
        texts = RowCursor(self.batches(list(dict.fromkeys(("caption", source)))))
        # A cursor of its own: other queries on the connection would end the stream.
        cursor = self.con.cursor()
        try:
            query = "SELECT row, key, parent, completions FROM unjudged ORDER BY row"
            for batch in cursor.sql(query).to_arrow_reader(block_rows):
                rows = texts.take(batch.column("row").to_numpy())
                yield block(batch, rows.column("caption"), rows.column(source))
        finally:
            cursor.close()

    def rejected(self) -> np.ndarray:
        """Rows (int64, ascending) that were judged and have no accepted answer at any attempt."""
        with self.judged():
            return self._numbers(
                "SELECT row FROM judged GROUP BY row HAVING NOT bool_or(len(accepted) > 0) ORDER BY row"
            )

    def accepted(self) -> int:
        """How many rows have an accepted answer."""
        with self.judged():
            return self._count("SELECT count(DISTINCT row) FROM judged WHERE len(accepted) > 0")

    @contextmanager
    def judged(self) -> Iterator[None]:
        """While it lasts, the view `judged` has row, attempt, key and verdict of all that is asked and judged."""
        with self.cache.attached(self.con):
            self.con.execute(JUDGED)
            yield

    def _numbers(self, query: str, *parameters: object) -> np.ndarray:
        return self.con.execute(query, list(parameters)).fetchnumpy()["row"].astype(np.int64)

    def _count(self, query: str, *parameters: object) -> int:
        return self.con.execute(query, list(parameters)).fetchall()[0][0]


def block(answers: pa.RecordBatch, captions: pa.ChunkedArray, sources: pa.ChunkedArray) -> pa.RecordBatch:
    """Answers (columns key, parent, completions) with their texts, as `tables.ANSWERS`."""
    parents = answers.column("parent").fill_null(NO_PARENT)
    columns = [
        answers.column("key"),
        parents,
        captions.combine_chunks(),
        sources.combine_chunks(),
        answers.column("completions"),
    ]
    return pa.RecordBatch.from_arrays(
        [column.cast(field.type) for column, field in zip(columns, ANSWERS, strict=True)], schema=ANSWERS
    )
