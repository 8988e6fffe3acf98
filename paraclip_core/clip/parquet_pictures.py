"""Random access to pictures inside of Parquet, in bounded memory."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from paraclip_core.errors import InputError
from paraclip_core.pictures import (
    PICTURE_ROWS,
    damaged_parquet,
    is_picture,
    listed_types,
    picture_bytes,
    picture_column,
    picture_name,
    picture_place,
)

__all__ = ["ParquetPictures"]


@dataclass(frozen=True)
class _Window:
    """Neighbouring rows of a column."""

    column: str
    group: int
    first: int
    pictures: pa.Array

    def has(self, column: str, row: int) -> bool:
        return column == self.column and self.first <= row < self.first + len(self.pictures)


class ParquetPictures:
    """The pictures of a Parquet file, readable from several threads at once.

    Asked for in the order of rows, each row is decoded once; a step back begins its row group again. Memory holds a few
    rows and a page, however large the file and its row groups are.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`.

        Raises:
            InputError: it is damaged, or has no column of pictures; the text lists its columns.
        """
        self._path, self._lock = path, threading.Lock()
        try:
            self._file = pq.ParquetFile(path, memory_map=True)
        except pa.ArrowException as error:
            raise damaged_parquet(path, error) from error
        self._schema = self._file.schema_arrow
        column = picture_column(self._schema, where=str(path))
        if column is None:
            found = listed_types(self._schema)
            raise InputError(f"{path} has no column of pictures, binary or with a field `bytes`; it has {found}")
        if self._schema.get_field_index(column) < 0:
            raise InputError(f"{path} has more than one column {column!r}, expected one of pictures; leave one")
        self._column = column
        groups = (self._file.metadata.row_group(n).num_rows for n in range(self._file.num_row_groups))
        self._starts = list(accumulate(groups, initial=0))
        self._last = _Window("", -1, 0, pa.nulls(0))
        self._ahead: Iterator[_Window] = iter(())

    def read(self, name: str) -> bytes:
        """The image file of a picture.

        Raises:
            InputError: there is no such picture, or the file is damaged there.
        """
        place = picture_place(name)
        try:
            with self._lock:
                window = None if place is None else self._window(*place)
        except (pa.ArrowException, OSError) as error:
            raise damaged_parquet(self._path, error) from error
        data = None if place is None or window is None else window.pictures[place[1] - window.first].as_py()
        if data is None:
            raise InputError(f"{self._path} has no image {name!r}")
        return data

    def names(self) -> list[str]:
        """A name for each row, in order."""
        return [picture_name(self._column, row) for row in range(self._starts[-1])]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _window(self, column: str, row: int) -> _Window | None:
        at = self._schema.get_field_index(column)  # below 0 for a name that comes twice, too
        if at < 0 or not is_picture(self._schema.field(at).type):
            return None
        group = bisect_right(self._starts, row) - 1
        if group == len(self._starts) - 1:
            return None
        last = self._last
        if last.has(column, row):
            return last
        if (last.column, last.group) != (column, group) or row < last.first:
            self._ahead = self._windows(column, group)
        for window in self._ahead:
            self._last = window
            if window.has(column, row):
                return window
        return None

    def _windows(self, column: str, group: int) -> Iterator[_Window]:
        first = self._starts[group]
        for batch in self._file.iter_batches(PICTURE_ROWS, row_groups=[group], columns=[column]):
            yield _Window(column, group, first, picture_bytes(batch.column(0)))
            first += batch.num_rows
