"""Which captions a step looks at, and the blocks of a fixed size in which it does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import pyarrow as pa

__all__ = ["BLOCK_ROWS", "blocks", "count_wanted", "in_fraction", "wanted"]

BLOCK_ROWS = 4096
"""Rows that are judged together. Part of what an output means: the flood gate sees rows in this order."""


def in_fraction(text: str, fraction: float) -> bool:
    """Whether a caption belongs to the share that is paraphrased; depends on its text alone."""
    if fraction >= 1:
        return True
    raw = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(raw, "little") / 2**64 < fraction


def wanted(batches: Iterable[pa.RecordBatch], fraction: float) -> Iterator[pa.RecordBatch]:
    """The rows whose `caption` belongs to the share that is paraphrased."""
    for batch in batches:
        if fraction < 1:
            chosen = [in_fraction(text, fraction) for text in batch.column("caption").to_pylist()]
            batch = batch.filter(pa.array(chosen, pa.bool_()))
        yield batch


def count_wanted(batches: Iterable[pa.RecordBatch], fraction: float) -> int:
    """Rows that a step will look at."""
    return sum(batch.num_rows for batch in wanted(batches, fraction))


def blocks(batches: Iterable[pa.RecordBatch], rows: int = BLOCK_ROWS) -> Iterator[pa.RecordBatch]:
    """The same rows in blocks of `rows`, the last one shorter, however the batches were cut."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        while batch.num_rows:
            head = batch.slice(0, rows - count)
            batch = batch.slice(head.num_rows)
            waiting.append(head)
            count += head.num_rows
            if count == rows:
                yield _joined(waiting)
                waiting, count = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)
