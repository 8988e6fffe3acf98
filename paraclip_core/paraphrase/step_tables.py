"""A step's requests as a table in DuckDB, joined with everything answered and filtered before.

The table has a row for each row of the step and attempt. Missing answers are its anti-join with the cache's
`generations`, unfiltered ones its anti-join with `filter_results`, over all rows at once. Texts stay in the step's
Parquet files and are read again for the rows that need them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import duckdb
import numpy as np
import pyarrow as pa

from paraclip_core.paraphrase.keys import KEY_BYTES, RequestKeys
from paraclip_core.tables import ANSWERS
from paraclip_core.tables import DUCKDB as CONFIG

TAKEN_ROWS = 65_536
NO_PARENT = bytes(16)
"""Parent of step 1's generations, which come from no other generation."""
Batches = Callable[[Sequence[str]], Iterable[pa.RecordBatch]]
"""Reads the named columns of a step's rows (`INPUT_COLUMNS[step]`), from first to last; may be called repeatedly."""
INPUT_COLUMNS = {
    1: ("caption_id", "image_id", "caption", "license"),
    2: ("caption_id", "image_id", "caption", "paraphrase_1", "similarity_1", "license", "generation_1"),
}
"""Columns that each step reads: of the captions at step 1, of step 1's output at step 2."""
# `parent` is null at step 1; a constant of 16 bytes for each of ten million rows would be 300 MB.
MACROS = """
CREATE MACRO parent_of(parent) AS coalesce(parent, getvariable('no_parent'));
CREATE MACRO in_round(attempt, row, round, rows) AS
  attempt = round AND (rows::BIGINT[] IS NULL OR list_contains(rows::BIGINT[], row));
"""
MISSING = """
SELECT min(r.row) AS row FROM requests r ANTI JOIN cache.generations g ON g.key = r.key
WHERE r.attempt = ? GROUP BY r.key ORDER BY 1
"""
FILTERED = """
CREATE OR REPLACE VIEW filtered AS
SELECT r.row, r.attempt, r.key, v.accepted, v.answer, v.reason, v.detail
FROM requests r JOIN cache.filter_results v ON v.generation = r.key AND v.parent = parent_of(r.parent)
WHERE v.filters = getvariable('filters')
"""
UNFILTERED = """
SELECT min(r.row) AS row, r.key, r.parent, any_value(g.completions) AS completions
FROM requests r JOIN cache.generations g ON g.key = r.key
ANTI JOIN (SELECT * FROM cache.filter_results WHERE filters = getvariable('filters')) v
ON v.generation = r.key AND v.parent = parent_of(r.parent)
WHERE in_round(r.attempt, r.row, $attempt, $rows) GROUP BY r.key, r.parent
"""
REJECTED = """
SELECT row FROM filtered GROUP BY row HAVING NOT bool_or(len(accepted) > 0) AND coalesce(max(attempt) = ?, true)
ORDER BY row
"""
FIRST_FILTER_RESULTS = """
SELECT row, reason, detail, answer FROM filtered WHERE attempt = 0 AND list_contains(?::BIGINT[], row) ORDER BY row
"""


class GenerationCache(Protocol):
    """Every generation ever paid for, and every filter result on one."""

    def attached(self, con: duckdb.DuckDBPyConnection) -> AbstractContextManager[None]:
        """Attach everything as tables `cache.generations` and `cache.filter_results` of `con` for the duration of the
        context."""
        ...

    def lookup(self, keys: pa.FixedSizeBinaryArray) -> pa.Table:
        """Columns `key` and `completions` of the known ones among `keys`, each once, in any order."""
        ...

    def append(self, generations: pa.Table) -> None:
        """Store generations (schema `paraclip_core.tables.GENERATIONS`); on return they survive a kill."""
        ...

    def append_filter_results(self, filter_results: pa.Table) -> None:
        """Store filter results (schema `paraclip_core.tables.FILTER_RESULTS`); on return they survive a kill."""
        ...


class StepTables:
    """The requests of one step, joined with the cache; close it at the end."""

    def __init__(self, step: int, cache: GenerationCache, batches: Batches, filters: bytes, scratch: Path) -> None:
        """Start without requests. Filter results with the digest `filters` count; `scratch` is a folder for temporary
        files."""
        self.step, self.cache, self.batches, self.scratch = step, cache, batches, scratch
        self.source = source_column(step)
        self.rows = 0
        """Rows of the step, known once the requests of the first attempt are added."""
        scratch.mkdir(parents=True, exist_ok=True)
        self.con = duckdb.connect(":memory:", config=CONFIG | {"temp_directory": str(scratch / "duckdb.tmp")})
        self.con.execute("CREATE TABLE requests (row BIGINT, attempt SMALLINT, key BLOB, parent BLOB)")
        self.con.execute(MACROS)
        for name, digest in (("filters", filters), ("no_parent", NO_PARENT)):
            self.con.execute(f"SET VARIABLE {name} = ?::BLOB", [digest])

    def close(self) -> None:
        self.con.close()

    def add(self, request: RequestKeys, rows: np.ndarray | None = None) -> int:
        """Add the requests of one attempt for the rows with these numbers (int64, ascending), or for all rows; return
        the number of distinct ones."""
        if rows is None:
            self.rows = 0
            for batch in self.batches(self._columns):
                self._insert(request, np.arange(self.rows, self.rows + batch.num_rows), batch)
                self.rows += batch.num_rows
        else:
            cursor = RowCursor(self.batches(self._columns))
            for start in range(0, len(rows), TAKEN_ROWS):
                numbers = rows[start : start + TAKEN_ROWS]
                self._insert(request, numbers, cursor.take(numbers))
        return self._count("SELECT count(DISTINCT key) FROM requests WHERE attempt = ?", request.attempt)

    def missing(self, attempt: int) -> np.ndarray:
        """Rows (int64, ascending) whose request has no answer, the first one of each request."""
        with self.cache.attached(self.con):
            return self._numbers(MISSING, attempt)

    def with_texts(self, request: RequestKeys, rows: np.ndarray, count: int) -> Iterator[pa.Table]:
        """The requests of these rows, `count` at a time, as `tables.ANSWERS` without the answers."""
        cursor = RowCursor(self.batches(list(dict.fromkeys(("caption", *self._columns)))))
        for start in range(0, len(rows), count):
            taken = cursor.take(rows[start : start + count])
            texts = taken.column(self.source).to_pylist()
            no_parent = pa.repeat(pa.scalar(NO_PARENT, pa.binary(KEY_BYTES)), len(texts))
            parents = taken.column("generation_1") if self.step == 2 else no_parent
            captions, sources = taken.column("caption"), taken.column(self.source)
            yield pa.Table.from_arrays([request.keys(texts), parents, captions, sources], ANSWERS.names[:-1])

    def find_unfiltered(self, attempt: int, rows: np.ndarray | None = None) -> int:
        """Collect the answers without a filter result, of all rows or of these alone, for :meth:`unfiltered`; return
        their number."""
        values = {"attempt": attempt, "rows": None if rows is None else rows.tolist()}
        with self.cache.attached(self.con):
            self.con.execute(f"CREATE OR REPLACE TABLE unfiltered AS {UNFILTERED}", values)
        return len(self.con.table("unfiltered"))

    def unfiltered(self, block_rows: int) -> Generator[pa.RecordBatch, None, None]:
        """Blocks (`tables.ANSWERS`) of what :meth:`find_unfiltered` collected, by row."""
        cursor = RowCursor(self.batches(list(dict.fromkeys(("caption", self.source)))))
        for batch in self._stream("SELECT row, key, parent, completions FROM unfiltered ORDER BY row", block_rows):
            taken = cursor.take(batch.column("row").to_numpy())
            parents = batch.column("parent").fill_null(NO_PARENT)
            columns = [batch.column("key"), parents, taken.column("caption"), taken.column(self.source)]
            yield answers_block(pa.Table.from_arrays(columns, ANSWERS.names[:-1]), batch.column("completions"))

    @contextmanager
    def filtered(self) -> Iterator[None]:
        """Within the context, the view `filtered` has row, attempt, key and filter result of all filtered requests."""
        with self.cache.attached(self.con):
            self.con.execute(FILTERED)
            yield

    def rejected(self, last: int | None = None) -> np.ndarray:
        """Rows (int64, ascending) that were filtered and have no accepted answer; with `last`, those whose last attempt
        is that one."""
        with self.filtered():
            return self._numbers(REJECTED, last)

    def accepted(self) -> int:
        with self.filtered():
            return self._count("SELECT count(DISTINCT row) FROM filtered WHERE len(accepted) > 0")

    def first_filter_results(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """Row, reason (None: accepted), detail and answer of the first attempts at these rows, if filtered."""
        with self.filtered():
            return self.con.sql(FIRST_FILTER_RESULTS, params=[rows.tolist()]).to_arrow_table().to_pylist()

    @property
    def _columns(self) -> list[str]:
        """Columns that requests are made from."""
        return [self.source] if self.step == 1 else [self.source, "generation_1"]

    def _insert(self, request: RequestKeys, numbers: np.ndarray, batch: pa.RecordBatch | pa.Table) -> None:
        parents = batch.column("generation_1") if self.step == 2 else pa.nulls(batch.num_rows, pa.binary(KEY_BYTES))
        attempts = pa.repeat(pa.scalar(request.attempt, pa.int16()), batch.num_rows)
        columns = [pa.array(numbers), attempts, request.keys(batch.column(self.source).to_pylist()), parents]
        self.con.register("new", pa.Table.from_arrays(columns, ["row", "attempt", "key", "parent"]))
        self.con.execute("INSERT INTO requests FROM new")
        self.con.unregister("new")

    def _stream(self, query: str, rows: int) -> Iterator[pa.RecordBatch]:
        # A separate cursor: other queries on the connection would end the stream.
        with closing(self.con.cursor()) as cursor:
            yield from cursor.sql(query).to_arrow_reader(rows)

    def _numbers(self, query: str, *parameters: object) -> np.ndarray:
        return self.con.execute(query, list(parameters)).fetchnumpy()["row"].astype(np.int64)

    def _count(self, query: str, *parameters: object) -> int:
        return self.con.execute(query, list(parameters)).fetchall()[0][0]


def answers_block(requests: pa.Table, completions: pa.Array) -> pa.RecordBatch:
    """Requests from :meth:`StepTables.with_texts` with the answers to each, as `tables.ANSWERS`."""
    answered = requests.append_column("completions", completions)
    (block,) = answered.cast(ANSWERS).combine_chunks().to_batches()
    return block


class RowCursor:
    """Reads rows of a step by number; numbers must ascend from call to call."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Read `batches` from the first row on, as far as rows are needed."""
        self._batches = iter(batches)
        self._batch = pa.RecordBatch.from_pydict({})
        self._start = self._stop = 0

    def take(self, numbers: np.ndarray) -> pa.Table:
        """The rows with these numbers, int64, ascending."""
        pieces: list[pa.RecordBatch] = []
        done = 0
        while done < len(numbers):
            while numbers[done] >= self._stop:
                self._batch = next(self._batches)
                self._start, self._stop = self._stop, self._stop + self._batch.num_rows
            last = int(np.searchsorted(numbers, self._stop))
            pieces.append(self._batch.take(pa.array(numbers[done:last] - self._start)))
            done = last
        return pa.Table.from_batches(pieces)


def source_column(step: int) -> str:
    """The column with the text that a step paraphrases."""
    return "caption" if step == 1 else "paraphrase_1"
