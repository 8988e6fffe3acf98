"""Lines of a text file, plain or gzipped, as a stream in bounded memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from paraclip_core.captions.readers.rows import LONGEST_RECORD
from paraclip_core.errors import InputError

__all__ = ["decode", "numbered_lines", "open_bytes"]


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
        InputError: the file cannot be read, or is UTF-16.
    """
    with open_bytes(path) as file:
        number = 0
        while line := file.readline(LONGEST_RECORD):
            number += 1
            if number == 1:
                line = _without_mark(line, path)
            if len(line) == LONGEST_RECORD and not line.endswith(b"\n"):
                while (more := file.readline(LONGEST_RECORD)) and not more.endswith(b"\n"):
                    pass
                yield number, None
            else:
                yield number, decode(line.rstrip(b"\r\n"))


def decode(raw: bytes) -> str:
    """UTF-8 bytes as text; other bytes become lone surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def _without_mark(line: bytes, path: Path) -> bytes:
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path} is UTF-16, expected UTF-8; convert it (`iconv -f UTF-16 -t UTF-8`)")
    return line.removeprefix(b"\xef\xbb\xbf")
