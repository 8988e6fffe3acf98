"""The contents of a folder of many files as one hash, read again only where a file changed."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from paraclip_core.errors import ArtifactError, InputError
from storage.files import file_sha256, settled, write_atomic

__all__ = ["folder_hash"]

log = logging.getLogger(__name__)

DIGEST_SIZE = 16
LISTING = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("state", pa.binary(DIGEST_SIZE), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
    ]
)


def folder_hash(folder: Path, memory: Path, without: Path | None = None) -> str:
    """Hash of the names and contents of all files below `folder`, 32 hex digits; it does not depend on where that lies.

    A folder in which no name, size or time of change differs from the last time costs one walk. Otherwise the files
    that differ are read, and the rest is known from the listing that is kept in `memory`.

    Args:
        folder: any number of files, at any depth; links to folders are not followed, broken ones are passed over.
        memory: folder for the listings, one Parquet file for each folder.
        without: a folder that does not count, should it lie below.

    Raises:
        InputError: a file cannot be read.
    """
    kept = memory / f"{_digest(str(folder.resolve())).hex()}.parquet"
    recorded = _recorded(kept)
    skipped = _below(folder, without)
    if recorded is not None and recorded.get("seen") == _seen(folder, skipped):
        return recorded["content"]
    return _read(folder, kept, skipped)


def _below(folder: Path, other: Path | None) -> Path | None:
    """`other` as a path that begins as `folder` does, if it lies below that."""
    if other is None or folder.resolve() not in other.resolve().parents:
        return None
    return folder / other.resolve().relative_to(folder.resolve())


def _seen(folder: Path, skipped: Path | None) -> str:
    seen = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for name, stat in _files(folder, skipped):
        seen.update(_encoded(name) + _state(stat))
    return seen.hexdigest()


def _read(folder: Path, kept: Path, skipped: Path | None) -> str:
    known = _known(kept)
    seen, content = (hashlib.blake2b(digest_size=DIGEST_SIZE) for _ in range(2))
    rows: list[tuple[str, bytes, str]] = []
    lasting = True
    for name, stat in _files(folder, skipped):
        state = _state(stat)
        before = known.get(name)
        try:
            sha256 = before[1] if before and before[0] == state else file_sha256(folder / name)
        except OSError as error:
            raise InputError(f"cannot read {folder / name}: {error.strerror or error}") from error
        lasting &= settled(stat)
        seen.update(_encoded(name) + state)
        content.update(_encoded(name) + sha256.encode())
        rows.append((name, state, sha256))
    if lasting:
        _keep(kept, rows, {"seen": seen.hexdigest(), "content": content.hexdigest()})
    return content.hexdigest()


def _files(folder: Path, skipped: Path | None) -> Iterator[tuple[str, os.stat_result]]:
    """Path inside the folder and state of each file, in one order on every machine."""

    def failed(error: OSError) -> None:
        raise InputError(f"cannot list {error.filename or folder}: {error.strerror or error}") from error

    for place, folders, files in os.walk(folder, onerror=failed):
        folders[:] = sorted(name for name in folders if Path(place, name) != skipped)
        for file in sorted(files):
            path = Path(place, file)
            # A broken link, a pipe or a socket is no image; it must not stop the stage, and a pipe would for ever.
            if path.is_file():
                yield path.relative_to(folder).as_posix(), path.stat()


def _state(stat: os.stat_result) -> bytes:
    return _digest(f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}")


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape") + b"\0"


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=DIGEST_SIZE).digest()


def _recorded(kept: Path) -> dict[str, str] | None:
    try:
        metadata = pq.read_schema(kept).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    return {key.decode(): value.decode() for key, value in metadata.items() if key in (b"seen", b"content")}


def _known(kept: Path) -> dict[str, tuple[bytes, str]]:
    try:
        columns = pq.read_table(kept, schema=LISTING).to_pydict()
    except (OSError, pa.ArrowException, UnicodeDecodeError):
        return {}
    return {
        name: (state, sha256)
        for name, state, sha256 in zip(columns["name"], columns["state"], columns["sha256"], strict=True)
    }


def _keep(kept: Path, rows: list[tuple[str, bytes, str]], recorded: dict[str, str]) -> None:
    try:
        columns = list(zip(*rows, strict=True)) or [(), (), ()]
        # Names that are no text cannot be listed, and such a folder is read anew each time.
        arrays = [pa.array(column, field.type) for column, field in zip(columns, LISTING, strict=True)]
    except UnicodeEncodeError:
        return

    def save(file: BinaryIO) -> None:
        pq.write_table(pa.table(arrays, LISTING.with_metadata(recorded)), file, compression="zstd")

    try:
        write_atomic(kept, save)
    except ArtifactError as error:
        log.warning("the hashes of the files of a folder are not remembered: %s", error)
