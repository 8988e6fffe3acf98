"""Opening DuckDB, here with nothing that a file or a row could make it load, and what its errors mean."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb

from paraclip_core.errors import ArtifactError, LockedError
from storage.atomic import storage_error

__all__ = ["CONFIG", "attached", "environment_error"]

FOREIGN_WAIT_SECONDS = 30.0
CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": "1GB",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
}


@contextmanager
def attached(path: Path, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection in which a file is open, once nobody else has it open; closed at the end.

    Raises:
        LockedError: another program keeps it open.
        duckdb.Error: it is damaged, or the disk is.
    """
    with _process.connection(path) as con:
        name = f"file_{next(_numbers)}"
        _attach(con, path, name, read_only)
        try:
            con.execute(f"USE {name}")
            yield con
        except BaseException:
            # Why this fails, too, is the error that is on its way.
            with suppress(duckdb.Error):
                _detach(con, name)
            raise
        _detach(con, name)


def _attach(con: duckdb.DuckDBPyConnection, path: Path, name: str, read_only: bool) -> None:
    started = time.monotonic()
    while True:
        try:
            con.execute(f"ATTACH ? AS {name}" + (" (READ_ONLY)" if read_only else ""), [str(path)])
            return
        except duckdb.Error as error:
            text = str(error)
            if "Could not set lock" not in text and "already attached" not in text:
                raise
            if time.monotonic() - started > FOREIGN_WAIT_SECONDS:
                raise LockedError(f"another program keeps {path} open; close it and run again ({text})") from error
            time.sleep(0.05)


def _detach(con: duckdb.DuckDBPyConnection, name: str) -> None:
    with suppress(duckdb.TransactionException):
        con.execute("ROLLBACK")
    con.execute("USE memory")
    con.execute(f"DETACH {name}")


class _Process:
    """This process's DuckDB for the file that it opened last: to make one takes fifteen milliseconds, to use it one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: tuple[tuple[int, Path], duckdb.DuckDBPyConnection] | None = None
        self._inherited: list[duckdb.DuckDBPyConnection] = []

    @contextmanager
    def connection(self, path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
        wanted = (os.getpid(), path)
        with self._lock:
            if self._made is None or self._made[0] != wanted:
                if self._made and self._made[0][0] != os.getpid():
                    # A forked process has none of the threads, and would wait for them if it let go.
                    self._inherited.append(self._made[1])
                # What is spilled goes where it would go if the file were opened alone.
                own: Any = CONFIG | {"temp_directory": f"{path}.tmp"}
                self._made = (wanted, duckdb.connect(":memory:", config=own))
            con = self._made[1].cursor()
        try:
            yield con
        except BaseException:
            # Some errors leave all of it unusable; the next one begins anew.
            with self._lock:
                self._made = None
            raise
        finally:
            con.close()


_process = _Process()
_numbers = itertools.count()


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
