"""CSV and TSV, with or without a header line.

CSV follows RFC 4180 (quoted fields may hold line breaks). TSV has no quoting: a quote is a letter there.
A file has a header if its first record names a usual column. Without one, the caption column is given by its number
(``columns.caption: "0"``) or guessed where that is safe: one column is the caption; of two, the one that is a URL or an
image's file name is the image, as in Conceptual Captions (``caption TAB url``).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain
from operator import itemgetter
from pathlib import Path

from paraclip_core.captions.readers.columns import (
    CAPTION,
    IMAGE_NAME,
    Columns,
    choose_columns,
    has_caption,
    need_image,
    table_header,
)
from paraclip_core.captions.readers.text import numbered_lines
from paraclip_core.captions.rows import LONGEST_RECORD, Batcher, RowBatch
from paraclip_core.config import ColumnNames, SourceOptions
from paraclip_core.errors import InputError

__all__ = ["read_csv", "read_tsv"]

Record = tuple[int, list[str] | None]
"""Line number of a record and its fields; None for a line above 16 MiB."""


def read_csv(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    """Records of a CSV file; rows are the numbers of their first lines.

    Raises:
        InputError: the file cannot be read, a quote is never closed, or no column is the caption.
    """
    return _read(path, options, _csv_records(path))


def read_tsv(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    """Records of a TSV file; rows are line numbers.

    Raises:
        InputError: the file cannot be read, or no column is the caption.
    """
    records = ((number, None if line is None else line.split("\t")) for number, line in numbered_lines(path))
    return _read(path, options, records)


def _read(path: Path, options: SourceOptions, records: Iterator[Record]) -> Iterator[RowBatch]:
    first = next(records, None)
    if first is None:
        return
    header = first[1] or []
    columns, names = _columns(header, options.columns, path)
    if not names:
        records = chain([first], records)
        names = [str(n) for n in range(len(header))]
    need_image(columns.image, names, options, str(path))
    captions = itemgetter(*map(names.index, columns.captions))
    keys = [None if name is None else names.index(name) for name in columns.keys]
    batcher, width = Batcher(), len(names)
    for number, fields in records:
        if fields is None:
            batcher.reject(number, "too_long", "a line of more than 16 MiB")
        elif len(fields) != width:
            shown = ", ".join(fields)[:2000]
            blank = not shown.strip()
            detail = "an empty line" if blank else f"{len(fields)} fields, expected {width}"
            batcher.reject(number, "empty" if blank else "missing_field", detail, shown)
        else:
            batcher.add(number, captions(fields), *[None if key is None else fields[key] for key in keys])
        yield from batcher.full()
    yield from batcher.rest()


def _columns(first: list[str], wanted: ColumnNames, path: Path) -> tuple[Columns, list[str]]:
    """The columns, and the header's names: empty where the file has no header."""
    names = [field.strip() for field in first]
    captions = wanted.captions
    if captions and all(name.isdecimal() and name not in names for name in captions):
        return choose_columns([str(n) for n in range(len(first))], wanted, f"{path} (without a header)"), []
    if wanted.named() or has_caption(names):
        return choose_columns(names, wanted, str(path)), names
    if len(first) == 1 and (separator := table_header(first[0], ";\t|,")):
        raise InputError(
            f"{path} is separated by {separator!r} (its first line is {first[0][:80]!r}), expected commas in CSV and "
            "tabs in TSV; set data.sources[].format to what it is, or save it as CSV"
        )
    if len(first) == 1:
        return Columns(("0",)), []
    images = [bool(IMAGE_NAME.fullmatch(field.strip())) for field in first]
    if len(first) == 2 and sum(images) == 1:
        image = str(images.index(True))
        return Columns((str(1 - int(image)),), image=image, path=image), []
    raise InputError(
        f"{path} has no header that names a caption ({', '.join(CAPTION)}) and its first line has {len(first)} fields: "
        f"{', '.join(repr(field[:40]) for field in first[:8])}. Name the one with the caption in "
        'data.sources[].columns.caption, or, where there is no header, count from 0 ("0")'
    )


def _csv_records(path: Path) -> Iterator[Record]:
    csv.field_size_limit(LONGEST_RECORD)
    reader = csv.reader(_text_lines(path), strict=True)
    last = 0
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"{path} is not valid CSV in the record that begins at line {last + 1}: {error}. Is a quote not closed "
                "or not doubled? A file without quoting is read with data.sources[].format: tsv"
            ) from error
        yield last + 1, fields
        last = reader.line_num


def _text_lines(path: Path) -> Iterator[str]:
    for number, line in numbered_lines(path):
        if line is None:
            raise InputError(f"line {number} of {path} has more than 16 MiB; is a line break missing?")
        yield line + "\n"
