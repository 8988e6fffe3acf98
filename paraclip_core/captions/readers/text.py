"""Plain text with one caption per line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paraclip_core.captions.columns import reads_like_a_table
from paraclip_core.captions.options import SourceOptions
from paraclip_core.captions.readers.lines import numbered_lines
from paraclip_core.captions.rows import Batcher, RowBatch
from paraclip_core.errors import InputError


def read_text(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    """Yield every line as a caption, numbered by line."""
    batcher = Batcher()
    for number, line in numbered_lines(path):
        if line is None:
            batcher.reject(number, "too_long", "a line of more than 16 MiB")
        elif number == 1 and reads_like_a_table(line):
            raise InputError(
                f"{path} is read as plain text, but its first line is one of a table ({line[:80]!r}); set "
                "data.sources[].format to csv or tsv"
            )
        else:
            batcher.add(number, line, None)
        yield from batcher.full()
    yield from batcher.rest()
