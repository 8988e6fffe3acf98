"""Names that say what a thing is: hashes over canonical JSON and over files."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

from paraclip_core.errors import ArtifactError, InputError
from storage.files import file_sha256, read_json, settled, write_json
from storage.folder_hashes import folder_hash

__all__ = ["FileHashes", "canonical_json", "fingerprint"]

log = logging.getLogger(__name__)

_told: set[Path] = set()
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
        self._known: dict[str, Any] = {}
        if path.exists():
            try:
                self._known = _sound(read_json(path))
            except ArtifactError:
                log.warning("%s is damaged, source files are hashed again", path)

    def of(self, files: Iterable[Path]) -> dict[str, str]:
        """SHA-256 of each file, by its path as given.

        Raises:
            InputError: a file is missing or unreadable.
        """
        hashes, changed = {}, False
        for path in files:
            try:
                stat = path.stat()
                # A folder says so itself.
                if not (S_ISREG(stat.st_mode) or S_ISDIR(stat.st_mode)):
                    raise InputError(f"{path} is a pipe or a device and cannot be read twice; write it to a file first")
                key = str(path.resolve())
                seen = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
                known = self._known.get(key)
                if known is None or known[:3] != seen:
                    known = [*seen, file_sha256(path)]
                    if settled(stat):
                        self._known[key], changed = known, True
            except OSError as error:
                raise InputError(f"cannot read {path}: {error.strerror or error}") from error
            hashes[str(path)] = known[3]
        if changed:
            self._remember()
        return hashes

    def of_folder(self, folder: Path) -> str:
        """Hash of the names and contents of all files below a folder, wherever it lies; those of the root aside.

        Raises:
            InputError: a file is unreadable.
        """
        cache = self._path.parent
        # A root may lie among the images, and changes whenever something is made.
        return folder_hash(folder, cache / "source_folders", without=cache.parent)

    def _remember(self) -> None:
        try:
            write_json(self._path, self._known)
        except ArtifactError as error:
            # A run resolves its stages many times over, and each time the disk is as full as before.
            if self._path not in _told:
                _told.add(self._path)
                log.warning("source hashes are not remembered: %s", error)


def _sound(known: Any) -> dict[str, Any]:
    """The entries of a file of hashes that have the right form."""
    entries = known.items() if isinstance(known, dict) else ()
    return {path: entry for path, entry in entries if isinstance(entry, list) and len(entry) == 4}
