"""Plain text: one caption a line, no images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paraclip_core.captions.readers.columns import table_header
from paraclip_core.captions.readers.delimited import IMAGE_NAME
from paraclip_core.captions.readers.lines import numbered_lines
from paraclip_core.captions.rows import Batcher, RowBatch
from paraclip_core.config import SourceOptions
from paraclip_core.errors import InputError

__all__ = ["read_text"]


def read_text(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    """Every line as a caption; rows are line numbers.

    Raises:
        InputError: the file cannot be read, or is a table.
    """
    batcher = Batcher()
    for number, line in numbered_lines(path):
        if line is None:
            batcher.reject(number, "too_long", "a line of more than 16 MiB")
        elif number == 1 and _is_table(line):
            raise InputError(
                f"{path} is read as plain text, but its first line is one of a table ({line[:80]!r}); set "
                "data.sources[].format to csv or tsv"
            )
        else:
            batcher.add(number, line, None)
        yield from batcher.full()
    yield from batcher.rest()


def _is_table(line: str) -> bool:
    """Whether a line is a header that names captions and images, or a name of an image and its caption, as tables of
    captions that are called ``.txt`` begin."""
    fields = line.split("\t")
    named = len(fields) > 1 and any(IMAGE_NAME.fullmatch(field.strip()) for field in fields)
    return named or table_header(line, ",;\t|") is not None
