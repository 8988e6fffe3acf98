"""Names that say what a thing is: hashes over canonical JSON, over files and over folders of files.

A source file that is missing or unreadable raises InputError.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from paraclip.storage.files import file_sha256, read_json, settled, write_atomic, write_json
from paraclip_core.errors import ArtifactError, InputError

log = logging.getLogger(__name__)

DIGEST_SIZE = 16
LISTING = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("state", pa.binary(DIGEST_SIZE), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
    ]
)
_warned: set[Path] = set()
"""Files of hashes that this process could not write and said so."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no blanks: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(stage: str, version: int, options: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Fingerprint of an artifact: 32 hex digits of blake2b over everything that gives it its meaning.

    Args:
        stage: the stage's name.
        version: the stage's version; raise it when its code gives other output for the same input.
        options: the meaning-bearing options, JSON-ready.
        inputs: the fingerprint of each named input.
    """
    text = canonical_json({"stage": stage, "version": version, "options": options, "inputs": inputs})
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class FileHashes:
    """SHA-256 of source files, remembered by path, size and times of change."""

    def __init__(self, path: Path) -> None:
        """`path` is the JSON file to remember in; a damaged one is started anew."""
        self._path = path
        self._entries: dict[str, Any] = {}
        if path.exists():
            try:
                entries = read_json(path)
                items = entries.items() if isinstance(entries, dict) else ()
                self._entries = {key: entry for key, entry in items if isinstance(entry, list) and len(entry) == 4}
            except ArtifactError:
                log.warning("%s is damaged, source files are hashed again", path)

    def of(self, files: Iterable[Path]) -> dict[str, str]:
        """SHA-256 of each file, by its path as given."""
        hashes, changed = {}, False
        for path in files:
            try:
                stat = path.stat()
                # A folder says so itself.
                if not (S_ISREG(stat.st_mode) or S_ISDIR(stat.st_mode)):
                    raise InputError(f"{path} is a pipe or a device and cannot be read twice; write it to a file first")
                key = str(path.resolve())
                state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
                entry = self._entries.get(key)
                if entry is None or entry[:3] != state:
                    entry = [*state, file_sha256(path)]
                    if settled(stat):
                        self._entries[key], changed = entry, True
            except OSError as error:
                raise InputError(f"cannot read {path}: {error.strerror or error}") from error
            hashes[str(path)] = entry[3]
        if changed:
            self._remember()
        return hashes

    def of_folder(self, folder: Path) -> str:
        """Hash of the names and contents of all files below a folder, wherever it lies; those of the root aside."""
        cache = self._path.parent
        # A root may lie among the images, and changes whenever something is made.
        return folder_hash(folder, cache / "source_folders", without=cache.parent)

    def _remember(self) -> None:
        try:
            write_json(self._path, self._entries)
        except ArtifactError as error:
            # A run resolves its stages many times over, and each time the disk is as full as before.
            if self._path not in _warned:
                _warned.add(self._path)
                log.warning("source hashes are not remembered: %s", error)


def folder_hash(folder: Path, memory: Path, without: Path | None = None) -> str:
    """Hash of the names and contents of all files below `folder`, 32 hex digits; it does not depend on where that lies.

    A folder in which no name, size or time of change differs from the last time costs one walk. Otherwise the files
    that differ are read, and the rest is known from the listing that is kept in `memory`.

    Args:
        folder: any number of files, at any depth; links to folders are not followed, broken ones are passed over.
        memory: folder for the listings, one Parquet file for each folder.
        without: a folder that does not count, should it lie below.
    """
    listing = memory / f"{_digest(str(folder.resolve())).hex()}.parquet"
    skipped = _below(folder, without)
    hashes = _listed_hashes(listing)
    if hashes:
        states = hashlib.blake2b(digest_size=DIGEST_SIZE)
        for name, stat in _files(folder, skipped):
            states.update(_encoded(name) + _state(stat))
        if hashes.get("seen") == states.hexdigest():
            return hashes["content"]
    return _read_folder(folder, listing, skipped)


def _below(folder: Path, other: Path | None) -> Path | None:
    """`other` as a path that begins as `folder` does, if it lies below that."""
    if other is None or folder.resolve() not in other.resolve().parents:
        return None
    return folder / other.resolve().relative_to(folder.resolve())


def _read_folder(folder: Path, listing: Path, skipped: Path | None) -> str:
    listed = _listed_files(listing)
    states, content = (hashlib.blake2b(digest_size=DIGEST_SIZE) for _ in range(2))
    rows: list[tuple[str, bytes, str]] = []
    lasting = True
    for name, stat in _files(folder, skipped):
        state = _state(stat)
        before = listed.get(name)
        try:
            sha256 = before[1] if before and before[0] == state else file_sha256(folder / name)
        except OSError as error:
            raise InputError(f"cannot read {folder / name}: {error.strerror or error}") from error
        lasting &= settled(stat)
        states.update(_encoded(name) + state)
        content.update(_encoded(name) + sha256.encode())
        rows.append((name, state, sha256))
    if lasting:
        _write_listing(listing, rows, {"seen": states.hexdigest(), "content": content.hexdigest()})
    return content.hexdigest()


def _files(folder: Path, skipped: Path | None) -> Iterator[tuple[str, os.stat_result]]:
    """Path inside the folder and state of each file, in one order on every machine."""

    def fail(error: OSError) -> None:
        raise InputError(f"cannot list {error.filename or folder}: {error.strerror or error}") from error

    for place, folders, files in os.walk(folder, onerror=fail):
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


def _listed_hashes(listing: Path) -> dict[str, str]:
    """The hashes of all names and states (`seen`) and of all contents (`content`), nothing where none are listed."""
    try:
        metadata = pq.read_schema(listing).metadata or {}
    except (OSError, pa.ArrowException):
        return {}
    return {key.decode(): value.decode() for key, value in metadata.items() if key in (b"seen", b"content")}


def _listed_files(listing: Path) -> dict[str, tuple[bytes, str]]:
    """State and SHA-256 of each listed file, by its path."""
    try:
        columns = pq.read_table(listing, schema=LISTING).to_pydict()
    except (OSError, pa.ArrowException, UnicodeDecodeError):
        return {}
    return dict(zip(columns["name"], zip(columns["state"], columns["sha256"], strict=True), strict=True))


def _write_listing(listing: Path, rows: list[tuple[str, bytes, str]], hashes: dict[str, str]) -> None:
    try:
        columns = list(zip(*rows, strict=True)) or [(), (), ()]
        # Names that are no text cannot be listed, and such a folder is read anew each time.
        arrays = [pa.array(column, field.type) for column, field in zip(columns, LISTING, strict=True)]
    except UnicodeEncodeError:
        return
    table = pa.table(arrays, LISTING.with_metadata(hashes))
    try:
        write_atomic(listing, lambda file: pq.write_table(table, file, compression="zstd"))
    except ArtifactError as error:
        log.warning("the hashes of the files of a folder are not remembered: %s", error)
