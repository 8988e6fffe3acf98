"""The rows and rejects of a step, chosen from its filter results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paraclip_core.paraphrase.step_tables import INPUT_COLUMNS, RowCursor, StepTables, source_column
from paraclip_core.tables import PARAPHRASE_REJECTS, PARAPHRASES

# A row is requested again only while it has no accepted answer, so at most one of its attempts has one.
CHOSEN = "SELECT row, key, accepted[1:getvariable('keep')] AS accepted FROM filtered WHERE len(accepted) > 0"
REJECTED = """
SELECT row, attempt, key, reason, coalesce(detail, '') AS detail, answer FROM filtered WHERE len(accepted) = 0
"""


@dataclass(frozen=True)
class Selection:
    """The rows and rejects of a step, and how many there are."""

    tables: StepTables
    chosen: Path
    rejected: Path
    accepted: int
    """Captions with a kept answer."""
    kept: int
    """Rows that are kept, several per caption if `paraphrase.keep` allows it."""
    reasons: dict[str, int]
    """Rejections by reason, one per caption and attempt."""

    def rows(self) -> Iterator[pa.RecordBatch]:
        """Rows (`tables.PARAPHRASES`), batch by batch, in input order."""
        step = self.tables.step
        for chosen, inputs in self._with_inputs(self.chosen, INPUT_COLUMNS[step]):
            lists = chosen.column("accepted")
            answers = lists.flatten()
            # For each answer, the number of its caption in the batch.
            of = pa.array(np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy())))
            columns = {name: inputs.column(name).take(of) for name in INPUT_COLUMNS[step]}
            columns |= {
                f"paraphrase_{step}": answers.field("answer"),
                f"similarity_{step}": answers.field("similarity"),
                f"generation_{step}": chosen.column("key").take(of),
            }
            yield _batch(columns, PARAPHRASES, len(answers))

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The named columns of the rows, as the next step reads them; may be called repeatedly."""
        return (batch.select(list(columns)) for batch in self.rows())

    def rejects(self) -> Iterator[pa.RecordBatch]:
        """Rejects (`tables.PARAPHRASE_REJECTS`), batch by batch, in input order."""
        step = self.tables.step
        source = source_column(step)
        for rejected, inputs in self._with_inputs(self.rejected, ("caption_id", source)):
            columns = {name: rejected.column(name) for name in ("attempt", "reason", "detail", "answer")}
            columns |= {
                "caption_id": inputs.column("caption_id"),
                "step": pa.repeat(step, len(rejected)),
                "input": inputs.column(source),
                "generation": rejected.column("key"),
            }
            yield _batch(columns, PARAPHRASE_REJECTS, len(rejected))

    def _with_inputs(self, path: Path, columns: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
        """Batches of a file sorted by its column `row`, each with the step's input rows."""
        cursor = RowCursor(self.tables.batches(columns))
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                (inputs,) = cursor.take(batch.column("row").to_numpy()).combine_chunks().to_batches()
                yield batch, inputs


def select(tables: StepTables, keep: int) -> Selection:
    """Choose from the accepted answers: at most `keep` per row."""
    con = tables.con
    chosen, rejected = (str(tables.scratch / f"{name}.parquet") for name in ("chosen", "rejected"))
    with tables.filtered():
        con.execute("SET VARIABLE keep = ?", [keep])
        con.sql(f"{CHOSEN} ORDER BY row").write_parquet(chosen, compression="lz4")
        con.sql(f"{REJECTED} ORDER BY row, attempt").write_parquet(rejected, compression="lz4")
    count = "SELECT count(*), coalesce(sum(len(accepted)), 0)::BIGINT FROM read_parquet(?)"
    ((accepted, kept),) = con.execute(count, [chosen]).fetchall()
    reasons = "SELECT reason, count(*) FROM read_parquet(?) GROUP BY reason ORDER BY reason"
    by_reason = dict(con.execute(reasons, [rejected]).fetchall())
    return Selection(tables, Path(chosen), Path(rejected), accepted, kept, by_reason)


def _batch(columns: dict[str, pa.Array], schema: pa.Schema, rows: int) -> pa.RecordBatch:
    arrays = [columns[f.name].cast(f.type) if f.name in columns else pa.nulls(rows, f.type) for f in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
