"""Parquet with LAION's columns (URL, TEXT, LICENSE), img2dataset's (key, url, caption) or custom ones.

Pictures in a column are read once to identify them: the image id comes from the column with its key, or else is a hash
of the picture, so rows that repeat a picture share it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from paraclip_core.captions.columns import IMAGE, Columns, match_column, need_columns
from paraclip_core.captions.options import SourceOptions
from paraclip_core.captions.readers.lines import decode
from paraclip_core.captions.rows import BATCH_CHARS, BATCH_ROWS, Batcher, RowBatch, as_key
from paraclip_core.errors import InputError
from paraclip_core.pictures import (
    PICTURE_ROWS,
    damaged_parquet,
    is_picture,
    picture_bytes,
    picture_column,
    picture_digest,
    picture_name,
)


def read_parquet(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    """Yield every record as a row, numbered from 0."""
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            columns = _columns(file.schema_arrow, options, path)
            if columns.picture is not None:
                yield from _picture_rows(file, columns, columns.picture)
                return
            row = 0
            for batch in file.iter_batches(BATCH_ROWS, columns=columns.names()):
                yield from _rows(row, _captions(batch, columns), _keys(batch, *columns.keys))
                row += batch.num_rows
    except (pa.ArrowException, OSError, KeyError) as error:  # KeyError: one name for several columns
        raise damaged_parquet(path, error) from error


def parquet_records(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Every record with the values of `columns`, by default all except pictures."""
    try:
        with pq.ParquetFile(path) as file:
            columns = columns or [field.name for field in file.schema_arrow if not is_picture(field.type)]
            for batch in file.iter_batches(BATCH_ROWS, columns=columns):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}") from error


def _columns(schema: pa.Schema, options: SourceOptions, path: Path) -> Columns:
    """The columns to read; columns of pictures are considered only if a source has no other images."""
    columns, image = need_columns(schema.names, options.columns, str(path)), options.columns.image
    picture = None if options.images is not None else picture_column(schema, image, str(path))
    if picture is None:
        return columns
    texts = [field.name for field in schema if not is_picture(field.type)]
    return replace(columns, image=match_column(texts, *([image] if image else IMAGE)), path=None, picture=picture)


def _rows(first: int, captions: list[Any], keys: list[list[Any]]) -> Iterator[RowBatch]:
    """The rows from number `first` on: as whole columns if all values are text, otherwise one by one."""
    rows = range(first, first + len(captions))
    plain = captions and all(isinstance(caption, str) for caption in captions)
    if plain and sum(map(len, captions)) < BATCH_CHARS:
        try:
            images, paths, splits, licenses, counts = ([as_key(value, "") for value in column] for column in keys)
        except TypeError:
            pass  # the row's reject describes the problem
        else:
            yield RowBatch(captions, images, paths, splits, licenses, counts, list(rows))
            return
    batcher = Batcher()
    for row, caption, *values in zip(rows, captions, *keys, strict=True):
        batcher.add(row, caption, *values)
        yield from batcher.full()
    yield from batcher.rest()


def _picture_rows(file: pq.ParquetFile, columns: Columns, picture: str) -> Iterator[RowBatch]:
    batcher, row = Batcher(), 0
    for batch in file.iter_batches(PICTURE_ROWS, columns=columns.names()):
        keys = _keys(batch, columns.image, columns.split, columns.license)
        for data, caption, key, *rest in zip(
            picture_bytes(batch.column(picture)), _captions(batch, columns), *keys, strict=True
        ):
            if data.is_valid:
                digest = picture_digest(data.as_buffer())
                # One that is no text is rejected.
                named = key.strip() or digest if isinstance(key, str) else digest if key is None else key
                batcher.add(row, caption, named, picture_name(picture, row, digest), *rest)
            else:
                text = caption if isinstance(caption, str) else None
                batcher.reject(row, "missing_field", f"no picture in column {picture!r}, its bytes are null", text)
            row += 1
        yield from batcher.full()
    yield from batcher.rest()


def _keys(batch: pa.RecordBatch, *columns: str | None) -> list[list[Any]]:
    return [[None] * batch.num_rows if name is None else _values(batch.column(name)) for name in columns]


def _captions(batch: pa.RecordBatch, columns: Columns) -> list[Any]:
    """Each row's captions: the value of the caption column, or a tuple of the values of several."""
    values = [_values(batch.column(name)) for name in columns.captions]
    return values[0] if len(values) == 1 else list(zip(*values, strict=True))


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_integer(column.type):
        column = column.cast(pa.string())
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [None if raw is None else decode(raw) for raw in column.cast(pa.binary()).to_pylist()]
