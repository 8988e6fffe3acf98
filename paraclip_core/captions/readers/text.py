"""Plain text with one caption per line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paraclip_core.captions.options import SourceOptions
from paraclip_core.captions.readers.lines import numbered_lines
from paraclip_core.captions.rows import Batcher, RowBatch


def read_text(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    """Yield every line as a caption, numbered by line."""
    batcher = Batcher()
    for number, line in numbered_lines(path):
        if line is None:
            batcher.reject(number, "too_long", "a line of more than 16 MiB")
        else:
            batcher.add(number, line, None)
        yield from batcher.full()
    yield from batcher.rest()
