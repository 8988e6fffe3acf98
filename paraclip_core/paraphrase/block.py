"""The rows of one block: what is known about them while they are judged, and what is written of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from paraclip_core.paraphrase.choose import Verdict
from paraclip_core.paraphrase.conditions import ROWS
from paraclip_core.paraphrase.judged import OUTCOMES
from paraclip_core.tables import PARAPHRASE_REJECTS, PARAPHRASES

__all__ = ["INPUT_COLUMNS", "BlockState", "Tokens", "paraphrase_rows"]

INPUT_COLUMNS = {
    1: ("caption_id", "image_id", "caption", "caption_tokens", "licence"),
    2: (
        "caption_id", "image_id", "caption", "paraphrase_1", "caption_tokens", "paraphrase_1_tokens", "similarity_1",
        "licence", "generation_1",
    ),
}  # fmt: skip
"""Columns of the rows that each step reads: of the captions at step 1, of step 1's output at step 2."""

Tokens = Callable[[Sequence[str]], pa.Array]


class BlockState:
    """What is known about the rows of one block; rows are numbered from 0."""

    def __init__(self, captions: Sequence[str], sources: Sequence[str]) -> None:
        self.captions, self.sources = captions, sources
        self.kept: dict[int, tuple[Verdict, bytes]] = {}
        self.rejects: list[tuple[int, int, Verdict, bytes]] = []
        """Row, attempt, verdict and key of the generation."""
        self.last: dict[int, tuple[int, Verdict]] = {}
        """Last attempt, and the verdict that stands after it."""

    def conditioned(self, block: pa.RecordBatch, step: int) -> pa.Table:
        """The rows that were judged, in order, as conditions see them."""
        rows = sorted(self.last)
        verdicts = [self.last[row][1] for row in rows]
        there = block.take(pa.array(rows, pa.int64()))
        columns: dict[str, Any] = {
            "step": pa.repeat(pa.scalar(step, pa.int8()), len(rows)),
            "attempt": [self.last[row][0] for row in rows],
            "accepted": [verdict.reason is None for verdict in verdicts],
            "reason": [verdict.reason for verdict in verdicts],
            "detail": [verdict.detail for verdict in verdicts],
            "caption": [self.captions[row] for row in rows],
            "input": [self.sources[row] for row in rows],
            "answer": [verdict.answer for verdict in verdicts],
            "similarity": [verdict.similarity for verdict in verdicts],
            "image_id": there.column("image_id"),
            "licence": there.column("licence"),
        }
        return pa.Table.from_pydict(columns, schema=ROWS)

    def outcomes(self, tokens: Tokens) -> pa.RecordBatch:
        """The rows that were kept (`judged.OUTCOMES`), in order."""
        order = sorted(self.kept)
        answers = [self.kept[row][0].answer or "" for row in order]
        columns: dict[str, Any] = {
            "row": pa.array(order, pa.int32()),
            "answer": pa.array(answers, pa.string()),
            "tokens": tokens(answers),
            "similarity": pa.array([self.kept[row][0].similarity for row in order], pa.float32()),
            "generation": pa.array([self.kept[row][1] for row in order], pa.binary(16)),
        }
        return pa.RecordBatch.from_arrays([columns[f.name].cast(f.type) for f in OUTCOMES], schema=OUTCOMES)

    def reject_rows(self, block: pa.RecordBatch, step: int) -> pa.RecordBatch:
        """Every rejection (`tables.PARAPHRASE_REJECTS`), by row and attempt."""
        rejects = sorted(self.rejects, key=lambda reject: reject[:2])
        ids = block.column("caption_id")
        columns = {
            "caption_id": [ids[row].as_py() for row, _, _, _ in rejects],
            "step": [step] * len(rejects),
            "attempt": [attempt for _, attempt, _, _ in rejects],
            "reason": [verdict.reason for _, _, verdict, _ in rejects],
            "detail": [verdict.detail for _, _, verdict, _ in rejects],
            "input": [self.sources[row] for row, _, _, _ in rejects],
            "answer": [verdict.answer for _, _, verdict, _ in rejects],
            "generation": [key for _, _, _, key in rejects],
        }
        return pa.RecordBatch.from_pydict(columns, schema=PARAPHRASE_REJECTS)


def paraphrase_rows(block: pa.RecordBatch, kept: pa.RecordBatch, step: int) -> pa.RecordBatch:
    """The rows of a block (`INPUT_COLUMNS[step]`) that were kept, as `tables.PARAPHRASES` has them."""
    base = block if kept.num_rows == block.num_rows else block.take(kept.column("row"))
    columns: dict[str, Any] = {name: base.column(name) for name in INPUT_COLUMNS[step]}
    columns |= {
        f"paraphrase_{step}": kept.column("answer"),
        f"paraphrase_{step}_tokens": kept.column("tokens"),
        f"similarity_{step}": kept.column("similarity"),
        f"generation_{step}": kept.column("generation"),
    }
    arrays = [
        columns[f.name].cast(f.type) if f.name in columns else pa.nulls(kept.num_rows, f.type) for f in PARAPHRASES
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=PARAPHRASES)
