"""Access to images by name in a tar file, a folder or a Parquet file."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

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
from paraclip_core.tars import check_end

PARQUET = b"PAR1"
MOST_ASPECT = 1000
"""Maximum ratio of the longer to the shorter side. Encoders scale the shorter one to 224 pixels or more: an image of
1 x 65,000 pixels, in a file of a few hundred bytes, would become 14 GB."""


class ImageArchive:
    """Random access to the images of a plain tar file, of a folder or of a Parquet file with pictures in a column.

    A tar is indexed once, when it is opened. Names are keys: one that leads out of the archive is simply not found.
    Reading is thread-safe.
    """

    def __init__(self, path: Path | str) -> None:
        """Open and index `path`."""
        self.path = Path(path)
        self._parquet: ParquetPictures | None = None
        self._file: io.BufferedReader | None = None
        self._index: dict[str, tuple[int, int]] = {}
        if self.path.is_dir():
            return
        try:
            with self.path.open("rb") as file:
                start = file.read(len(PARQUET))
            if start == PARQUET:
                self._parquet = ParquetPictures(self.path)
                return
            self._index = _index_tar(self.path)
            self._file = self.path.open("rb")
            weakref.finalize(self, self._file.close)
        except OSError as error:
            raise InputError(f"cannot read images from {self.path}: {error.strerror or error}") from error

    def read(self, name: str) -> bytes:
        if self._parquet is not None:
            return self._parquet.read(name)
        key = _key(name)
        if self._file is None:
            return self._read_from_folder(key, name)
        place = self._place(key)
        if place is None:
            raise InputError(f"{self.path} has no image {name!r}")
        offset, size = place
        try:
            return os.pread(self._file.fileno(), size, offset)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def size(self, name: str) -> int | None:
        """Size in bytes of an image in a tar or folder, without reading it; None if there is no such image."""
        key = _key(name)
        if self.path.is_dir():
            return (self.path / key).stat().st_size if _is_file(self.path / key) and self._inside(key) else None
        place = self._place(key)
        return None if place is None else place[1]

    def has(self, name: str) -> bool:
        """Whether the archive has this image."""
        return self._parquet.has(name) if self._parquet is not None else self.size(name) is not None

    def _place(self, key: str) -> tuple[int, int] | None:
        return self._index.get(key) or self._index.get(self._by_file_name.get(key, ""))

    def open(self, name: str) -> Image.Image:
        """The decoded image, as RGB."""
        return decode_image(self.read(name), f"{self.path}/{name}")

    @property
    def in_order(self) -> bool:
        """Whether reading is cheap only in the order of the names, as with Parquet."""
        return self._parquet is not None

    def names(self) -> list[str]:
        """Names of all files, in the archive's order (a folder's: sorted)."""
        if self._parquet is not None:
            return self._parquet.names()
        if self._file is not None:
            return list(self._index)
        return sorted(p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file())

    def close(self) -> None:
        """Close the tar or Parquet file."""
        for file in (self._file, self._parquet):
            if file is not None:
                file.close()

    def __enter__(self) -> ImageArchive:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @cached_property
    def _by_file_name(self) -> dict[str, str]:
        """Members by bare file name, if it is unique: many datasets name images without their folder."""
        counts = Counter(PurePosixPath(member).name for member in self._index)
        return {name: member for member in self._index if counts[name := PurePosixPath(member).name] == 1}

    @cached_property
    def _folders(self) -> list[Path]:
        """Where the images of a folder may be: in it, or, of a snapshot in the hub's cache, where that keeps them."""
        resolved = self.path.resolve()
        snapshots = (parent.parent for parent in (resolved, *resolved.parents) if parent.parent.name == "snapshots")
        return [resolved, *(folder.with_name("blobs") for folder in snapshots)]

    def _inside(self, key: str) -> bool:
        """Whether a name stays in the folder: a symbolic link can lead out just like dots."""
        place = (self.path / key).resolve()
        return ".." not in PurePosixPath(key).parts and any(map(place.is_relative_to, self._folders))

    def _read_from_folder(self, key: str, name: str) -> bytes:
        path = self.path / key
        if not _is_file(path):
            raise InputError(f"{self.path} has no image {name!r}")
        if not self._inside(key):
            raise InputError(f"{self.path} has no image {name!r}: the name leads out of the folder")
        return path.read_bytes()


def missing_images(path: Path, names: Sequence[str]) -> list[str]:
    """The names that a folder, tar or Parquet file does not contain."""
    with ImageArchive(path) as archive:
        return [name for name in names if not archive.has(name)]


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode an image file to RGB; `name` is used in error messages."""
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            return _as_rgb(image)
    except UnidentifiedImageError as error:
        # Pillow's own text contains a memory address, which would differ between runs.
        raise InputError(f"{name} cannot be decoded as an image: its format is unknown") from error
    except Exception as error:  # decoders raise all kinds of errors on damaged data
        raise InputError(f"{name} cannot be decoded as an image: {type(error).__name__}: {error}") from error


def rgb_image(source: Image.Image | str | Path, name: str) -> Image.Image:
    """A Pillow image or image file as RGB; `name` is used in error messages about a Pillow image."""
    if not isinstance(source, Image.Image):
        return decode_image(_file_bytes(Path(source)), str(source))
    try:
        return _as_rgb(source)
    except Exception as error:  # an opened file is only decoded here
        raise InputError(f"{name} cannot be decoded as an image: {type(error).__name__}: {error}") from error


def _file_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the image {path}: {getattr(error, 'strerror', None) or error}") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    # Pillow only warns below twice its limit, and warnings cannot be caught safely in threads.
    vast = Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS
    if vast or not min(image.size) or max(image.size) > MOST_ASPECT * min(image.size):
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
    if "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


@cache
def _formats() -> list[str]:
    """Formats that Pillow decodes itself. It would let Ghostscript execute PostScript, whatever the file name."""
    Image.preinit()
    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def _key(name: str) -> str:
    return name.removeprefix("./").lstrip("/")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # its name is too long
        return False


def _index_tar(path: Path) -> dict[str, tuple[int, int]]:
    """Offset and size in bytes of each regular member; the last of several with the same name counts, as in tar."""
    index: dict[str, tuple[int, int]] = {}
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isreg() and not member.issparse():
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError(f"member {member.name!r} ends after the file does")
                    index[_key(member.name)] = (member.offset_data, member.size)
            check_end(tar)
    except tarfile.TarError as error:
        raise InputError(f"{path} is not a whole, uncompressed tar file ({error}); copy or unpack it again") from error
    return index


@dataclass(frozen=True)
class _Window:
    """Adjacent rows of a column."""

    column: str
    group: int
    first: int
    pictures: pa.Array

    def has(self, column: str, row: int) -> bool:
        return column == self.column and self.first <= row < self.first + len(self.pictures)


class ParquetPictures:
    """The pictures of a Parquet file; thread-safe.

    When read in row order, each row is decoded once; a step back reads its row group again. Only a few rows and a page
    are in memory, whatever the size of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        try:
            self._file = pq.ParquetFile(path, memory_map=True)
        except pa.ArrowException as error:
            raise damaged_parquet(path, error) from error
        self._schema = self._file.schema_arrow
        pictures = [field.name for field in self._schema if is_picture(field.type)]
        if not pictures:
            columns = listed_types(self._schema)
            raise InputError(f"{path} has no column of pictures, binary or with a field `bytes`; it has {columns}")
        if self._schema.get_field_index(pictures[0]) < 0:
            raise InputError(f"{path} has more than one column {pictures[0]!r}, expected one of pictures; keep one")
        groups = (self._file.metadata.row_group(n).num_rows for n in range(self._file.num_row_groups))
        self._starts = list(accumulate(groups, initial=0))
        self._last = _Window("", -1, 0, pa.nulls(0))
        self._ahead: Iterator[_Window] = iter(())

    def read(self, name: str) -> bytes:
        """The image file of a picture."""
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
        column = picture_column(self._schema, where=str(self._path))
        assert column is not None
        return [picture_name(column, row) for row in range(self._starts[-1])]

    def has(self, name: str) -> bool:
        """Whether there is a row of this name."""
        column, row = picture_place(name) or ("", -1)
        return self._schema.get_field_index(column) >= 0 and 0 <= row < self._starts[-1]

    def close(self) -> None:
        self._file.close()

    def _window(self, column: str, row: int) -> _Window | None:
        at = self._schema.get_field_index(column)  # also below 0 for a duplicate name
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
