"""Select: from verdicts to the rows and rejects of a step, in SQL.

An answer that was accepted as the best one for more than `max_repeats` different inputs is a flood, and no input keeps
it; the next of its accepted answers takes its place. Of the attempts of a row the last accepted one counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paraclip_core.paraphrase.requests import INPUT_COLUMNS, StepTables, source_column
from paraclip_core.tables import PARAPHRASE_REJECTS, PARAPHRASES

# Punctuation and case make no other answer.
PLAIN = r"""
CREATE OR REPLACE MACRO plain(answer) AS hash(trim(regexp_replace(lower(answer), '[^\pL\pN]+', ' ', 'g')))
"""

# An input is told by the key of its first request.
INPUTS = "SELECT accepted, key AS input FROM judged"
INPUTS_ASKED_AGAIN = """
SELECT accepted, first.key AS input FROM judged JOIN asked first ON first.row = judged.row AND first.attempt = 0
"""
FLOODS = """
SET VARIABLE floods = (
  SELECT coalesce(list(spoken), []) FROM (
    SELECT spoken FROM (
      SELECT DISTINCT plain(accepted[1].answer) AS spoken, input FROM ({}) WHERE len(accepted) > 0
    ) GROUP BY spoken HAVING count(*) > ?
  )
)
"""

OUTCOMES = """
CREATE OR REPLACE VIEW outcomes AS
SELECT row, attempt, key, accepted, answer, reason, detail, similarity FROM judged
"""

OUTCOMES_WITHOUT_FLOODS = """
CREATE OR REPLACE VIEW outcomes AS
SELECT row, attempt, key, dry AS accepted,
  CASE WHEN len(dry) < len(accepted) THEN accepted[1].answer ELSE answer END AS answer,
  CASE WHEN len(dry) < len(accepted) THEN 'repeated_flood' ELSE reason END AS reason,
  CASE WHEN len(dry) < len(accepted) THEN getvariable('flooded') ELSE detail END AS detail,
  CASE WHEN len(dry) < len(accepted) THEN accepted[1].similarity ELSE similarity END AS similarity
FROM (
  SELECT *, list_filter(accepted, lambda one: NOT list_contains(getvariable('floods'), plain(one.answer))) AS dry
  FROM judged
)
"""

CHOSEN = "SELECT row, key, accepted[1:getvariable('keep')] AS accepted FROM outcomes WHERE len(accepted) > 0"
LAST_CHOSEN = f"{CHOSEN} QUALIFY attempt = max(attempt) OVER (PARTITION BY row)"
REJECTED = """
SELECT row, attempt, key, reason, coalesce(detail, '') AS detail, answer FROM outcomes WHERE len(accepted) = 0
"""
LAST_REJECTED = """
SELECT row, max(attempt) + 1 AS attempt FROM outcomes
GROUP BY row HAVING NOT bool_or(len(accepted) > 0) AND arg_max(reason, attempt) = ? ORDER BY row
"""


@dataclass
class Selection:
    """The rows and rejects of a step, to be read once, and how many there are."""

    tables: StepTables
    chosen: Path
    rejected: Path
    accepted: int = 0
    """Captions with a kept answer."""
    kept: int = 0
    """Rows that are kept, several of a caption where `paraphrase.keep` allows that."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Rejections by reason, one for each caption and attempt."""

    def batches(self) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
        """Rows (`tables.PARAPHRASES`) and rejects (`tables.PARAPHRASE_REJECTS`), batch by batch, in input order."""
        chosen, rejected = _Sorted(self.chosen), _Sorted(self.rejected)
        start = 0
        for batch in self.tables.batches(INPUT_COLUMNS[self.tables.step]):
            stop = start + batch.num_rows
            rows = _paraphrases(batch, chosen.before(stop), start, self.tables.step)
            yield rows, _rejects(batch, rejected.before(stop), start, self.tables.step)
            start = stop


def select(tables: StepTables, keep: int, max_repeats: int | None) -> Selection:
    """Choose among what was accepted: `keep` answers of a row, at most. `max_repeats` None: no answer is a flood."""
    selection = Selection(tables, tables.scratch / "chosen.parquet", tables.scratch / "rejected.parquet")
    with tables.judged():
        _view_outcomes(tables, max_repeats)
        con = tables.con
        con.execute("SET VARIABLE keep = ?", [keep])
        _copy(tables, LAST_CHOSEN if _asked_again(tables) else CHOSEN, "row", selection.chosen)
        _copy(tables, REJECTED, "row, attempt", selection.rejected)
    path = str(selection.chosen)
    selection.accepted, selection.kept = con.execute(
        "SELECT count(*), coalesce(sum(len(accepted)), 0)::BIGINT FROM read_parquet(?)", [path]
    ).fetchall()[0]
    reasons = "SELECT reason, count(*) FROM read_parquet(?) GROUP BY reason ORDER BY reason"
    selection.reasons = dict(con.execute(reasons, [str(selection.rejected)]).fetchall())
    return selection


def rejected_for(tables: StepTables, reason: str, max_repeats: int | None) -> dict[int, np.ndarray]:
    """Rows (int64, ascending) without an accepted answer whose last one was rejected for this reason, by the number of
    their next attempt, the lowest first."""
    with tables.judged():
        _view_outcomes(tables, max_repeats)
        columns = tables.con.execute(LAST_REJECTED, [reason]).fetchnumpy()
    rows, attempts = columns["row"].astype(np.int64), columns["attempt"]
    return {attempt: rows[attempts == attempt] for attempt in np.unique(attempts).tolist()}


def _view_outcomes(tables: StepTables, max_repeats: int | None) -> None:
    con, flooded = tables.con, False
    if max_repeats is not None and tables.rows > max_repeats:
        con.execute(PLAIN)
        con.execute(FLOODS.format(INPUTS_ASKED_AGAIN if _asked_again(tables) else INPUTS), [max_repeats])
        con.execute("SET VARIABLE flooded = ?", [f"the same answer for more than {max_repeats} inputs"])
        flooded = con.execute("SELECT len(getvariable('floods')) > 0").fetchall()[0][0]
    con.execute(OUTCOMES_WITHOUT_FLOODS if flooded else OUTCOMES)


def _asked_again(tables: StepTables) -> bool:
    """Whether there are further attempts."""
    return tables.con.execute("SELECT coalesce(max(attempt), 0) > 0 FROM asked").fetchall()[0][0]


def _copy(tables: StepTables, query: str, order: str, path: Path) -> None:
    # A path is no parameter of COPY; quotes in it are doubled as in any SQL string.
    quoted = str(path).replace("'", "''")
    tables.con.execute(f"COPY ({query} ORDER BY {order}) TO '{quoted}' (FORMAT parquet, COMPRESSION lz4)")


class _Sorted:
    """Rows of a Parquet file that is sorted by its column `row`, read piece by piece."""

    def __init__(self, path: Path) -> None:
        file = pq.ParquetFile(path)
        self._batches = file.iter_batches(batch_size=65_536)
        self._rest = pa.Table.from_batches([], schema=file.schema_arrow)
        self._ended = False

    def before(self, stop: int) -> pa.Table:
        """The rows below `stop` that were not given yet."""
        pieces = [self._rest]
        while not self._ended and not (pieces[-1].num_rows and pieces[-1].column("row")[-1].as_py() >= stop):
            batch = next(self._batches, None)
            self._ended = batch is None
            if batch is not None and batch.num_rows:
                pieces.append(pa.Table.from_batches([batch]))
        whole = pa.concat_tables(pieces)
        count = int(np.searchsorted(whole.column("row").to_numpy(), stop))
        self._rest = whole.slice(count)
        return whole.slice(0, count).combine_chunks()


def _paraphrases(batch: pa.RecordBatch, chosen: pa.Table, start: int, step: int) -> pa.RecordBatch:
    lists = _whole(chosen.column("accepted"))
    accepted, parents = lists.flatten(), np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy()))
    rows = chosen.column("row").to_numpy()[parents] - start
    # Nothing is copied where every row is kept once.
    base = batch if np.array_equal(rows, np.arange(batch.num_rows)) else batch.take(pa.array(rows))
    columns = {name: base.column(name) for name in INPUT_COLUMNS[step]}
    columns |= {
        f"paraphrase_{step}": accepted.field("answer"),
        f"paraphrase_{step}_tokens": accepted.field("tokens"),
        f"similarity_{step}": accepted.field("similarity"),
        f"generation_{step}": _whole(chosen.column("key")).take(pa.array(parents)),
    }
    return _batch(columns, PARAPHRASES, len(rows))


def _rejects(batch: pa.RecordBatch, rejected: pa.Table, start: int, step: int) -> pa.RecordBatch:
    rows = batch.take(pa.array(rejected.column("row").to_numpy() - start))
    columns = {name: _whole(rejected.column(name)) for name in ("attempt", "reason", "detail", "answer")}
    columns |= {
        "caption_id": rows.column("caption_id"),
        "step": pa.repeat(pa.scalar(step, pa.int8()), rows.num_rows),
        "input": rows.column(source_column(step)),
        "generation": _whole(rejected.column("key")),
    }
    return _batch(columns, PARAPHRASE_REJECTS, rows.num_rows)


def _batch(columns: dict[str, pa.Array], schema: pa.Schema, rows: int) -> pa.RecordBatch:
    arrays = [columns[f.name].cast(f.type) if f.name in columns else pa.nulls(rows, f.type) for f in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)
