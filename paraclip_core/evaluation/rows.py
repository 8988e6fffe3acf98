"""Reading benchmark files row by row: tab-separated without quoting, CSV, JSON, JSONL and Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from paraclip_core.captions.rows import decodable
from paraclip_core.errors import BenchmarkError
from paraclip_core.pictures import is_picture


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, from 1, without their ends; LF and CRLF both end a line, and nothing else does."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    where = f"{path}, line {number}, byte {error.start + 1}"
                    raise BenchmarkError(f"{where}: not valid UTF-8; save the file as UTF-8") from error
                yield number, text.removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise BenchmarkError(f"cannot read {path}: {error.strerror or error}") from error


def plain_tsv(path: Path, expected: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a tab-separated file with a header line, quotation marks being ordinary characters.

    Args:
        path: the file.
        expected: columns that must be there.
    """
    header: list[str] | None = None
    for number, line in lines(path):
        cells = line.split("\t")
        if header is None:
            header = [cell.strip() for cell in cells]
            missing = [name for name in expected if name not in header]
            if missing:
                raise BenchmarkError(
                    f"{path}, line 1: no column {', '.join(missing)} in the header {header}; "
                    f"expected tab-separated {', '.join(expected)}"
                )
        elif line:
            if len(cells) != len(header):
                raise BenchmarkError(f"{path}, line {number}: {len(cells)} fields, expected {len(header)} as in line 1")
            yield number, dict(zip(header, cells, strict=True))


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSONL, JSON, CSV, TSV or Parquet file, with the line or row number, from 1.

    A JSON file holds a list of objects, or an object of objects (SugarCrepe's way). Pictures in Parquet are left out.
    """
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        for number, line in lines(path):
            if line.strip():
                yield number, _json_object(path, number, line)
    elif suffix == ".json":
        yield from _json_rows(path)
    elif suffix in (".csv", ".tsv"):
        yield from _csv_rows(path, "\t" if suffix == ".tsv" else ",")
    elif suffix == ".parquet":
        yield from _parquet_rows(path)
    else:
        raise BenchmarkError(f"{path}: expected a .jsonl, .json, .csv, .tsv or .parquet file")


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
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise BenchmarkError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise BenchmarkError(f"{path} is not valid JSON: {error}") from error


def _json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BenchmarkError(f"{path}, line {number}: not valid JSON ({error}); expected one object a line") from error
    if not isinstance(value, dict):
        raise BenchmarkError(f"{path}, line {number}: a {type(value).__name__}, expected a JSON object")
    return value


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    value = read_json_file(path)
    rows = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise BenchmarkError(f"{path}: a {type(value).__name__}, expected a list of objects")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise BenchmarkError(f"{path}, entry {number}: a {type(row).__name__}, expected an object with captions")
        yield number, row


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader((text + "\n" for _, text in lines(path)), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise BenchmarkError(f"{path}, line {reader.line_num}: the number of fields differs from the header's")
            yield reader.line_num, row
    except csv.Error as error:
        raise BenchmarkError(f"{path}, line {reader.reader.line_num}: not valid CSV ({error})") from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            texts = [column.name for column in file.schema_arrow if not is_picture(column.type)]
            for batch in file.iter_batches(batch_size=8192, columns=texts):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{path} cannot be read as Parquet: {error}") from error
