"""Text tables: CSV and TSV, with or without a header.

CSV follows RFC 4180 (quoted fields may hold line breaks); if the header uses semicolons, tabs or bars
instead of commas, so does the file. TSV has no quoting: a quote is an ordinary character.
A table has a header if its first record names a usual column. Without one, the caption column is given by its number
(``columns.caption: "0"``) or guessed if that is safe: a single column is the caption; of two, the one with a URL or an
image's file name is the image, as in Conceptual Captions (``caption TAB url``).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path

from paraclip_core.captions.columns import (
    CAPTION,
    IMAGE_NAME,
    ColumnNames,
    Columns,
    has_caption,
    need_columns,
    plain_name,
)
from paraclip_core.captions.options import SourceOptions
from paraclip_core.captions.readers.lines import LONGEST_RECORD, numbered_lines
from paraclip_core.captions.rows import Batcher, RowBatch
from paraclip_core.errors import InputError

SEPARATORS = ",;\t|"
"""Separators of CSV, the usual one first."""
HEAD_LINES = 10
"""Lines by which the separator of a table without a known header is chosen."""
Record = tuple[int, list[str] | None]
"""Line number of a record and its fields; None for a line above 16 MiB."""


def read_csv(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    """Yield the records of a CSV file, numbered by their first lines."""
    named = {plain_name(name) for _, name in options.columns.named()}

    def is_header(names: list[str]) -> bool:
        return not named.isdisjoint(map(plain_name, names)) if named else has_caption(names)

    return _read(path, options, csv_records(path, is_header))


def read_tsv(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    return _read(path, options, tsv_records(path))


def _read(path: Path, options: SourceOptions, records: Iterator[Record]) -> Iterator[RowBatch]:
    first = next(records, None)
    if first is None:
        return
    header = first[1] or []
    columns, names = _columns(header, options.columns, path)
    if not names:
        records = chain([first], records)
        names = [str(n) for n in range(len(header))]
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


def _columns(first: list[str], chosen: ColumnNames, path: Path) -> tuple[Columns, list[str]]:
    """The columns, and the header's names: empty if the file has no header."""
    names = [field.strip() for field in first]
    captions = chosen.captions
    if captions and all(name.isdecimal() and name not in names for name in captions):
        return need_columns([str(n) for n in range(len(first))], chosen, f"{path} (without a header)"), []
    if chosen.named() or has_caption(names):
        return need_columns(names, chosen, str(path)), names
    if len(first) == 1:
        return Columns(("0",)), []
    images = [bool(IMAGE_NAME.fullmatch(field.strip())) for field in first]
    if len(first) == 2 and sum(images) == 1:
        image = str(images.index(True))
        return Columns((str(1 - int(image)),), image=image, path=image), []
    raise _no_header(path, first)


def _no_header(path: Path, first: list[str]) -> InputError:
    return InputError(
        f"{path} has no header that names a caption ({', '.join(CAPTION)}) and its first line has {len(first)} fields: "
        f"{', '.join(repr(field[:40]) for field in first[:8])}. Name the one with the caption in "
        'data.sources[].columns.caption, or, if there is no header, count from 0 ("0")'
    )


def header_fields(path: Path) -> list[str]:
    """The fields of a table's first line, split by the separator that gives the most fields."""
    first = next(_text_lines(path), "")
    return max((_split(first, delimiter) for delimiter in SEPARATORS), key=len)


def tsv_records(path: Path) -> Iterator[Record]:
    return ((number, None if line is None else line.split("\t")) for number, line in numbered_lines(path))


def csv_records(
    path: Path, is_header: Callable[[list[str]], bool] = has_caption, separators: str = SEPARATORS
) -> Iterator[Record]:
    """Records of a CSV file; the number is that of the first line.

    The separator is the first of `separators` that turns the first line into a header. Without a header it is the first
    one, unless that leaves the first line whole and another one gives a table with a column of numbers or images.
    """
    csv.field_size_limit(LONGEST_RECORD)
    lines = _text_lines(path)
    head = list(islice(lines, HEAD_LINES))
    first = head[0] if head else ""
    reader = csv.reader(chain(head, lines), delimiter=_delimiter(head, is_header, separators), strict=True)
    last = 0
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if names := _separated_otherwise(path, first, last + 1, separators[1:]):
                raise _no_header(path, names) from error
            raise InputError(
                f"{path} is not valid CSV in the record that begins at line {last + 1}: {error}. Is a quote not closed "
                "or not doubled? A file without quoting is read with data.sources[].format: tsv"
            ) from error
        yield last + 1, fields
        last = reader.line_num


def _delimiter(head: Sequence[str], is_header: Callable[[list[str]], bool], separators: str) -> str:
    if not head:
        return separators[0]
    rows = {delimiter: [_split(line, delimiter) for line in head] for delimiter in separators}
    for delimiter in separators:
        if len(rows[delimiter][0]) > 1 and is_header(rows[delimiter][0]):
            return delimiter
    whole = len(rows[separators[0]][0]) == 1
    tables = (delimiter for delimiter in separators[1:] if whole and _columns_of_data(rows[delimiter]))
    return next(tables, separators[0])


def _columns_of_data(rows: Sequence[list[str]]) -> bool:
    """Whether rows are equally long, and after the first one a column has only numbers or only images' names.

    Of a column of texts that all hold a semicolon, that is not so.
    """
    if len(rows) < 2 or len({len(row) for row in rows}) > 1 or len(rows[0]) < 2:
        return False
    columns = zip(*rows[1:], strict=True)
    return any(all(field.isdecimal() or IMAGE_NAME.fullmatch(field) for field in column) for column in columns)


def _split(line: str, delimiter: str) -> list[str]:
    with suppress(csv.Error):  # the records that follow report it with their line
        return next(csv.reader([line], delimiter=delimiter), [])
    return []


def _separated_otherwise(path: Path, first: str, line: int, separators: str) -> list[str]:
    """The first line's fields with a separator that gives the record at `line` as many fields and valid quotes.

    Empty if there is none.
    """
    for delimiter in separators:
        names = _split(first, delimiter)
        with suppress(InputError):
            records = csv_records(path, separators=delimiter)
            record = next((fields for number, fields in records if number >= line), None)
            if len(names) > 1 and len(names) == len(record or ()):
                return names
    return []


def _text_lines(path: Path) -> Iterator[str]:
    for number, line in numbered_lines(path):
        if line is None:
            raise InputError(f"line {number} of {path} has more than 16 MiB; is a line break missing?")
        yield line + "\n"
