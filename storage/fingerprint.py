"""Names that say what a thing is: hashes over canonical JSON, over files and over folders of files.

A source file that is missing or unreadable raises InputError.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

from paraclip.storage.files import file_sha256, read_json, settled, write_atomic
from paraclip_core.errors import ArtifactError, InputError

log = logging.getLogger(__name__)

Entry = list[Any]
"""Size and two times of change of a file, by which it is recognized, and its SHA-256."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no blanks: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(stage: str, version: int, options: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Fingerprint of an artifact: 32 hex digits of blake2b over everything that gives it its meaning."""
    text = canonical_json({"stage": stage, "version": version, "options": options, "inputs": inputs})
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class FileHashes:
    """SHA-256 of source files, remembered by path, size and times of change."""

    def __init__(self, path: Path) -> None:
        """`path` is the JSON file that keeps them; a damaged one is discarded."""
        self._path, self._entries = path, _remembered(path)

    def of(self, files: Iterable[Path]) -> dict[str, str]:
        """SHA-256 of each file, by its path as given."""
        hashes, before = {}, dict(self._entries)
        for path in files:
            key = str(path.resolve())
            entry = _entry(path, before.get(key))
            if settled(entry[2]):
                self._entries[key] = entry
            hashes[str(path)] = entry[3]
        if self._entries != before:
            _remember(self._path, self._entries)
        return hashes

    def of_place(self, path: Path) -> str:
        """SHA-256 of a file, or ``folder:`` and the hash of a folder."""
        return f"folder:{self.of_folder(path)}" if path.is_dir() else self.of([path])[str(path)]

    def of_folder(self, folder: Path) -> str:
        """Hash of the names and contents of all files below a folder, 32 hex digits; it does not depend on its place.

        Only files whose size or times of change differ from the last time are read. Links to folders are not followed,
        broken ones are skipped.
        """
        cache = self._path.parent
        place = hashlib.blake2b(_encoded(str(folder.resolve())), digest_size=16).hexdigest()
        path, content = cache / "source_folders" / f"{place}.json", hashlib.blake2b(digest_size=16)
        before, entries = _remembered(path), dict[str, Entry]()
        # A root may lie among the images, and changes whenever something is made.
        for name in _files(folder, cache.parent.resolve()):
            entry = _entry(folder / name, before.get(name))
            if settled(entry[2]):
                entries[name] = entry
            content.update(_encoded(name) + entry[3].encode())
        if entries != before:
            _remember(path, entries)
        return content.hexdigest()


def _entry(path: Path, before: Entry | None) -> Entry:
    try:
        stat = path.stat()
        # A folder has its own error.
        if not (S_ISREG(stat.st_mode) or S_ISDIR(stat.st_mode)):
            raise InputError(f"{path} is a pipe or a device and cannot be read twice; write it to a file first")
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        return before if before and before[:3] == state else [*state, file_sha256(path)]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _remembered(path: Path) -> dict[str, Entry]:
    if not path.exists():
        return {}
    try:
        entries = read_json(path)
    except ArtifactError:
        log.warning("%s is damaged, source files are hashed again", path)
        return {}
    items = entries.items() if isinstance(entries, dict) else ()
    return {key: entry for key, entry in items if isinstance(entry, list) and len(entry) == 4}


def _remember(path: Path, entries: Mapping[str, Entry]) -> None:
    # In ASCII, because a name may not be text. If there is no room, the files are read again next time.
    with suppress(OSError):
        write_atomic(path, lambda file: file.write(json.dumps(entries).encode()))


def _files(folder: Path, skipped: Path) -> Iterator[str]:
    """Path inside the folder of each file, in one order on every machine."""

    def fail(error: OSError) -> None:
        raise InputError(f"cannot list {error.filename or folder}: {error.strerror or error}") from error

    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if Path(place, name).resolve() != skipped)
        for file in sorted(files):
            path = Path(place, file)
            # A broken link, a pipe or a socket is no image; it must not stop the stage, and a pipe would for ever.
            if path.is_file():
                yield path.relative_to(folder).as_posix()


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape") + b"\0"
