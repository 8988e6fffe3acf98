"""Pictures in Parquet files, their column and names.

A picture is a binary value, or the field ``bytes`` of a struct, as the library `datasets` writes its images. Its name
is ``column[row]/digest``: its position and its content.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from paraclip_core.captions.columns import match_column
from paraclip_core.errors import InputError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Suffixes of image files."""
PICTURE_ROWS = 16
"""Rows read at a time, so that only a few pictures of a file are in memory."""
USUAL = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp")
_NAME = re.compile(r"(.*)\[(\d{1,18})\](?:/[0-9a-f]{32})?", re.DOTALL)


def is_picture(kind: pa.DataType) -> bool:
    """Whether values of this type may be pictures."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)
    return _is_binary(kind)


def picture_column(schema: pa.Schema, wanted: str | None = None, where: str = "the table") -> str | None:
    """The column of pictures: `wanted` if it holds any, one with a usual name, or the only struct of them; else None.

    `where` names the table in error messages.
    """
    pictures = [field.name for field in schema if is_picture(field.type)]
    if wanted is not None and (chosen := match_column(pictures, wanted)) is not None:
        return chosen
    exact = next((name for name in USUAL if name in pictures), None)
    structs = [field.name for field in schema if is_picture(field.type) and pa.types.is_struct(field.type)]
    if exact is None and len(structs) == 1:
        return structs[0]
    usual = match_column(pictures, *USUAL)
    if usual is None and len(structs) > 1:
        names = ", ".join(map(repr, structs))
        raise InputError(f"{where}: the columns {names} hold pictures; name one in data.sources[].columns.image")
    return usual


def holds_pictures(path: Path, wanted: str | None = None) -> bool:
    """Whether a file is Parquet with a column of pictures; errors in it are left for its reader to report."""
    try:
        return picture_column(pq.read_schema(path, memory_map=True), wanted) is not None
    except (pa.ArrowException, OSError, InputError):
        return False


def listed_types(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name!r} ({field.type})" for field in schema)


def picture_bytes(column: pa.Array) -> pa.Array:
    """The image files in a column of pictures, null if a row has none."""
    return column.flatten()[column.type.get_field_index("bytes")] if pa.types.is_struct(column.type) else column


def picture_digest(data: pa.Buffer | bytes) -> str:
    """The identity of a picture: 32 hex digits of blake2b over its file."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def picture_name(column: str, row: int, digest: str | None = None) -> str:
    """Name of a picture inside its file; names sort in row order."""
    return f"{column}[{row:09d}]" + (f"/{digest}" if digest else "")


def picture_place(name: str) -> tuple[str, int] | None:
    """Column and row that a picture's name refers to; None for any other name."""
    match = _NAME.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def damaged_parquet(path: Path, error: Exception) -> InputError:
    """The error for a damaged or truncated Parquet file."""
    return InputError(f"{path} cannot be read as Parquet, it is damaged or cut short: {error}; fetch it again")


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
