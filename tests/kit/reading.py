"""What tests of readers share: a file to read, its first batch, and why rows were rejected."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paraclip_core.captions.options import SourceOptions
from paraclip_core.captions.rows import RowBatch

OPTIONS = SourceOptions(path="x")


def write(folder: Path, data: bytes | str) -> Path:
    path = folder / "rows"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def first(batches: Iterator[RowBatch]) -> RowBatch:
    return next(batches, RowBatch())


def rejects(batch: RowBatch) -> list[tuple[int | None, str]]:
    return [(reject.row, reject.reason) for reject in batch.rejects]
