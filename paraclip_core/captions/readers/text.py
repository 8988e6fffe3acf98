"""Text files, plain or gzipped, as streams of lines in bounded memory; plain text has a caption a line, no images."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from paraclip_core.captions.readers.columns import IMAGE_NAME, table_header
from paraclip_core.captions.rows import LONGEST_RECORD, Batcher, RowBatch
from paraclip_core.config import SourceOptions
from paraclip_core.errors import InputError

__all__ = ["decode", "numbered_lines", "open_bytes", "read_text", "without_mark"]

UTF16: Mapping[tuple[bool, ...], str] = {(True, False, True, False): "UTF-16BE", (False, True, False, True): "UTF-16LE"}
"""What it is called by which of the first bytes are zero."""


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


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, unpacked where it is gzipped.

    Raises:
        InputError: it is missing or unreadable, or its gzip stream is cut short or damaged (raised while reading, too).
    """
    try:
        with path.open("rb") as file:
            magic = file.read(2)
            file.seek(0)
            if magic == b"\x1f\x8b":
                with gzip.open(file) as unpacked:
                    yield cast(BinaryIO, unpacked)
            else:
                yield file
    except EOFError as error:
        raise InputError(f"{path} is cut short: its gzip stream has no end; fetch it again") from error
    except zlib.error as error:
        raise InputError(f"{path} is damaged: its gzip stream cannot be unpacked ({error}); fetch it again") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def numbered_lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """Number (from 1) and text of each line, without its line break; None for a line above 16 MiB.

    Bytes that are not UTF-8 come as lone surrogates, so that one bad line costs one row and not the file.

    Raises:
        InputError: the file cannot be read, or does not hold lines of UTF-8.
    """
    with open_bytes(path) as file:
        number = 0
        while line := file.readline(LONGEST_RECORD):
            number += 1
            if number == 1:
                line = without_mark(line, path)
                if not line.endswith(b"\n") and b"\r" in line.rstrip(b"\r"):
                    raise InputError(f"the lines of {path} end in CR alone, expected LF; convert it (`tr '\\r' '\\n'`)")
            if len(line) == LONGEST_RECORD and not line.endswith(b"\n"):
                while (more := file.readline(LONGEST_RECORD)) and not more.endswith(b"\n"):
                    pass
                yield number, None
            else:
                yield number, decode(line.rstrip(b"\r\n"))


def decode(raw: bytes) -> str:
    """UTF-8 bytes as text; other bytes become lone surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def without_mark(start: bytes, path: Path) -> bytes:
    """The first bytes of a text file, without a byte order mark.

    Raises:
        InputError: it is no UTF-8, but UTF-16 or a zip archive.
    """
    marked = start.startswith((b"\xff\xfe", b"\xfe\xff"))
    # Without a mark the first letters tell, as they are ASCII in a header and in JSON.
    form = "UTF-16" if marked else UTF16.get(tuple(byte == 0 for byte in start[:4]))
    if form is not None:
        raise InputError(f"{path} is UTF-16, expected UTF-8; convert it (`iconv -f {form} -t UTF-8`)")
    if start.startswith(b"PK\x03\x04"):
        raise InputError(f"{path} is a zip archive or a spreadsheet; unpack it, or export it as CSV in UTF-8")
    return start.removeprefix(b"\xef\xbb\xbf")
