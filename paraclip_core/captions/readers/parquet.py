"""Parquet with LAION's columns (URL, TEXT, LICENSE), img2dataset's (key, url, caption) or a user's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from paraclip_core.captions.readers.columns import Columns, choose_columns, need_image
from paraclip_core.captions.readers.lines import decode
from paraclip_core.captions.readers.rows import BATCH_ROWS, Batcher, RowBatch, as_key
from paraclip_core.config import SourceOptions
from paraclip_core.errors import InputError

__all__ = ["read_parquet"]


def read_parquet(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    """Every record as a row; rows count from 0.

    Raises:
        InputError: the file is not whole Parquet, or has no text column for the caption.
    """
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            columns = choose_columns(file.schema_arrow.names, options.columns, str(path))
            need_image(columns.image, file.schema_arrow.names, options, str(path))
            _check_types(file.schema_arrow, columns, path)
            first = 0
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns.names()):
                yield from _rows(batch, columns, first)
                first += batch.num_rows
    except FileNotFoundError as error:
        raise InputError(f"cannot read {path}: no such file") from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path} cannot be read as Parquet, it is damaged or cut short: {error}; fetch it again"
        ) from error


def _rows(batch: pa.RecordBatch, columns: Columns, first: int) -> Iterator[RowBatch]:
    count = batch.num_rows
    captions = _values(batch.column(columns.caption))
    # As in every other format a blank is no image, no split and no licence.
    keys = {
        name: [as_key(value, name) for value in _values(batch.column(name))]
        for name in dict.fromkeys((columns.image, columns.path, columns.split, columns.licence))
        if name is not None
    }
    nothing: list[str | None] = [None] * count
    image_ids = keys[columns.image] if columns.image else nothing
    paths = keys[columns.path] if columns.path else nothing
    splits = keys[columns.split] if columns.split else nothing
    licences = keys[columns.licence] if columns.licence else nothing
    rows = list(range(first, first + count))
    if _is_list(batch.column(columns.caption).type) or None in captions:
        batcher = Batcher()
        for row, fields in zip(rows, zip(captions, image_ids, paths, splits, licences, strict=True), strict=True):
            batcher.add(row, *fields)
            yield from batcher.full()
        yield from batcher.rest()
    else:
        yield RowBatch(captions, image_ids, paths, splits, licences, rows)


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_integer(column.type):
        column = column.cast(pa.string())
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [None if raw is None else decode(raw) for raw in column.cast(pa.binary()).to_pylist()]


def _check_types(schema: pa.Schema, columns: Columns, path: Path) -> None:
    for name in columns.names():
        if schema.names.count(name) > 1:
            raise InputError(f"{path} has more than one column {name!r}; leave one, or name another in columns")
        kind = schema.field(name).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if _is_list(kind) and name == columns.caption:
            kind = kind.value_type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        if not text and (name == columns.caption or not (pa.types.is_integer(kind) or pa.types.is_null(kind))):
            picture = pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
            hint = (
                "; images inside of Parquet are not read, save them as files in data.sources[].images"
                if picture
                else ""
            )
            raise InputError(f"column {name!r} of {path} has type {kind}, expected text; name another in columns{hint}")


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)
