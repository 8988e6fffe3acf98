"""Plain text: one caption a line, no images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paraclip_core.captions.readers.lines import numbered_lines
from paraclip_core.captions.readers.rows import Batcher, RowBatch
from paraclip_core.config import SourceOptions

__all__ = ["read_text"]


def read_text(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    """Every line as a caption; rows are line numbers.

    Raises:
        InputError: the file cannot be read.
    """
    batcher = Batcher()
    for number, line in numbered_lines(path):
        if line is None:
            batcher.reject(number, "too_long", "a line of more than 16 MiB")
        else:
            batcher.add(number, line, None)
        yield from batcher.full()
    yield from batcher.rest()
