"""Reading benchmark files row by row, as captions are read: TSV, CSV, JSON, JSONL and Parquet."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paraclip_core.captions.readers.json import json_records, load_json
from paraclip_core.captions.readers.parquet import parquet_records
from paraclip_core.captions.readers.text import csv_records, numbered_lines
from paraclip_core.captions.rows import decodable
from paraclip_core.errors import BenchmarkError, InputError

_ADVICE = re.compile(r"[.;?] [^.;?]*data\.sources.*", re.DOTALL)
"""What a reader tells those who ingest captions."""


@contextmanager
def benchmark_errors() -> Iterator[None]:
    """Turn the readers' errors into those of a benchmark, which has no `data.sources`."""
    try:
        yield
    except InputError as error:
        advice = "; benchmarks read the usual columns, such as caption and image, of the formats in docs/benchmarks.md"
        raise BenchmarkError(_ADVICE.sub(advice, str(error))) from error


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, from 1, without their ends."""
    with benchmark_errors():
        for number, line in numbered_lines(path):
            if line is None:
                raise BenchmarkError(f"{path}, line {number}: more than 16 MiB; is a line break missing?")
            try:
                line.encode()
            except UnicodeEncodeError as error:
                where = f"{path}, line {number}, byte {len(line[: error.start].encode()) + 1}"
                raise BenchmarkError(f"{where}: not valid UTF-8; save the file as UTF-8") from error
            yield number, line


def plain_tsv(path: Path, expected: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a tab-separated file whose header has the `expected` columns; quotation marks are ordinary characters."""
    rows = ((number, line.split("\t")) for number, line in lines(path) if line or number == 1)
    header = [name.strip() for name in next(rows, (1, ()))[1]]
    if header and (missing := [name for name in expected if name not in header]):
        raise BenchmarkError(
            f"{path}, line 1: no column {', '.join(missing)} in the header {header}; "
            f"expected tab-separated {', '.join(expected)}"
        )
    yield from _named(path, header, rows)


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSONL, JSON, CSV, TSV or Parquet file, with the line or row number, from 1.

    A JSON file holds a list of objects, or an object of objects (SugarCrepe's way). Pictures in Parquet are left out.
    """
    suffix = path.suffix.lower()
    with benchmark_errors():
        if suffix in (".csv", ".tsv"):
            table = csv_records(path, lambda names: True, "\t" if suffix == ".tsv" else ",")
            rows = ((number, fields) for number, fields in table if fields)
            yield from _named(path, next(rows, (1, []))[1], rows)
            return
        if suffix == ".jsonl":
            objects = json_records(path)
        elif suffix == ".json":
            value = read_json_file(path)
            if not isinstance(value, dict | list):
                raise BenchmarkError(f"{path}: a {type(value).__name__}, expected a list of objects")
            objects = enumerate(value.values() if isinstance(value, dict) else value, 1)
        elif suffix == ".parquet":
            objects = enumerate(parquet_records(path), 1)
        else:
            raise BenchmarkError(f"{path}: expected a .jsonl, .json, .csv, .tsv or .parquet file")
        for number, row in objects:
            if isinstance(row, Exception):
                raise BenchmarkError(f"{path}, line {number}: not valid JSON ({row}); expected one object a line")
            if not isinstance(row, dict):
                raise BenchmarkError(f"{path}, row {number}: a {type(row).__name__}, expected a JSON object")
            yield number, row


def _named(path: Path, header: Sequence[str], rows: Iterable[tuple[int, list[str]]]) -> Iterator[tuple[int, Any]]:
    for number, fields in rows:
        if len(fields) != len(header):
            raise BenchmarkError(f"{path}, line {number}: {len(fields)} fields, expected {len(header)} as in line 1")
        yield number, dict(zip(header, fields, strict=True))


def field(path: Path, number: int, row: dict[str, Any], *names: str) -> str:
    """The first of the named fields that the row has, as text without outer blanks."""
    for name in names:
        value = row.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and not decodable([value]):
            raise BenchmarkError(f"{path}, row {number}: {name} is {value!r}, which holds half a character; mend it")
        if isinstance(value, str) and value.strip():
            return value.strip()
        if value is not None:
            raise BenchmarkError(f"{path}, row {number}: {name} is {value!r}, expected a text that is not empty")
    raise BenchmarkError(f"{path}, row {number}: no field {' or '.join(names)}; it has {', '.join(map(str, row))}")


def read_json_file(path: Path) -> Any:
    """Parse a whole JSON file."""
    with benchmark_errors():
        return load_json(path)
