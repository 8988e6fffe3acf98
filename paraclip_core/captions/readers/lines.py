"""Bytes and lines of text files, plain or gzipped, in bounded memory.

A file that cannot be read, or is UTF-16, raises InputError.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from paraclip_core.errors import InputError

LONGEST_RECORD = 16 << 20
"""Maximum bytes of a line or tar member; longer ones are rejected unread, so that no file can exhaust memory."""


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressing it if it is gzipped."""
    try:
        with path.open("rb") as file:
            magic = file.read(2)
            file.seek(0)
            if magic == b"\x1f\x8b":
                with gzip.open(file) as unpacked:
                    yield cast(BinaryIO, unpacked)
            else:
                yield file
    except (EOFError, zlib.error, OSError) as error:
        raise InputError(f"cannot read {path}: {error}; if it is cut short or damaged, fetch it again") from error


def numbered_lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """Number (from 1) and text of each line, without its line break; None for a line above 16 MiB.

    Bytes that are not UTF-8 become lone surrogates, so a bad line costs one row and not the whole file.
    """
    with open_bytes(path) as file:
        number = 0
        while line := file.readline(LONGEST_RECORD):
            number += 1
            if number == 1:
                line = without_mark(line, path)
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
    """The first bytes of a text file, without a byte order mark."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path} is UTF-16, expected UTF-8; convert it (`iconv -f UTF-16 -t UTF-8`)")
    return start.removeprefix(b"\xef\xbb\xbf")
