"""Opening DuckDB, here with nothing that a file or a row could make it load, and what its errors mean."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import duckdb

from paraclip_core.errors import ArtifactError, LockedError
from storage.atomic import storage_error

__all__ = ["CONFIG", "connect", "environment_error"]

FOREIGN_WAIT_SECONDS = 30.0
CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": "1GB",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
}


def connect(path: Path, read_only: bool) -> duckdb.DuckDBPyConnection:
    """Open a file, once nobody else has it open.

    Raises:
        LockedError: another program keeps it open.
        duckdb.Error: it is damaged, or the disk is.
    """
    started = time.monotonic()
    while True:
        try:
            return duckdb.connect(path, read_only=read_only, config=CONFIG)
        except duckdb.Error as error:
            text = str(error)
            if "Could not set lock" not in text and "different configuration" not in text:
                raise
            if time.monotonic() - started > FOREIGN_WAIT_SECONDS:
                raise LockedError(f"another program keeps {path} open; close it and run again ({text})") from error
            time.sleep(0.05)


def environment_error(error: duckdb.Error, path: Path) -> ArtifactError | None:
    """What a DuckDB error says about the machine; None where it says something about the file."""
    text = str(error)
    for sign, code in (
        ("No space left", errno.ENOSPC),
        ("Read-only file system", errno.EROFS),
        ("Permission denied", errno.EACCES),
    ):
        if sign in text:
            return storage_error(OSError(code, sign), path)
    if isinstance(error, duckdb.OutOfMemoryException):
        return ArtifactError(f"too little memory or disk to use {path}: {text}")
    return None
