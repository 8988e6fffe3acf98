"""The manifest of an artifact: what it says, how it is read wherever it lies, and whether the files agree with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paraclip.storage.files import file_sha256, files_below, parse_json
from paraclip_core.errors import ArtifactError

MANIFEST = "manifest.json"
SOURCE = "source:"
"""What the names of inputs from outside the store begin with."""
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class FileEntry:
    """A file of an artifact: its size in bytes and the SHA-256 of its bytes."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What an artifact is, where it came from and what is in it."""

    stage: str
    fingerprint: str
    stage_version: int
    inputs: dict[str, str]
    """Fingerprint of each input, by its name."""
    options: dict[str, Any]
    """The meaning-bearing options."""
    files: dict[str, FileEntry]
    """Every file, by its path inside the artifact."""
    metrics: dict[str, Any]
    """What the stage measured: row counts, scores."""
    versions: dict[str, str]
    """Software that made it."""
    wall_seconds: float
    created: str
    """ISO 8601, UTC."""
    schema_version: int = SCHEMA_VERSION

    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files.values())


@dataclass(frozen=True)
class Draft:
    """All that a manifest says besides the files."""

    stage: str
    fingerprint: str
    stage_version: int
    inputs: dict[str, str]
    options: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its folder and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def stage(self) -> str:
        """Name of the stage that made it."""
        return self.manifest.stage

    @property
    def fingerprint(self) -> str:
        """Its name."""
        return self.manifest.fingerprint


def sources_of(inputs: Mapping[str, str]) -> dict[str, str]:
    """Fingerprints of the inputs from outside the store, by their names without the prefix."""
    return {name.removeprefix(SOURCE): value for name, value in inputs.items() if name.startswith(SOURCE)}


def safe_name(name: str) -> str:
    """A file's path below a folder, as it is."""
    if not name or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ArtifactError(f"{name!r} cannot be the path of a file below a folder; delete what names it")
    return name


def parse_manifest(data: bytes, where: str, stage: str, fingerprint: str) -> Manifest:
    """The manifest in `data`, which lies at `where` and must be that of `stage` and `fingerprint`."""
    home = where.removesuffix(f"/{MANIFEST}")
    try:
        raw = parse_json(data)
    except ValueError as error:
        raise ArtifactError(f"{where} is not valid JSON ({error}); restore it or delete its folder") from error
    try:
        if raw["schema_version"] != SCHEMA_VERSION:
            raise ArtifactError(
                f"{where} has schema version {raw['schema_version']}, this release reads {SCHEMA_VERSION}; "
                f"use the paraclip that wrote it, or delete {home} to have it made again"
            )
        if (raw["stage"], raw["fingerprint"]) != (stage, fingerprint):
            raise ArtifactError(f"{where} belongs to {raw['stage']}/{raw['fingerprint']}; move or delete the folder")
        raw["files"] = {safe_name(name): FileEntry(**entry) for name, entry in raw["files"].items()}
        return Manifest(**raw)
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{where} lacks or has an unknown field ({error}); delete {home}") from error


def read_manifest(folder: Path) -> Manifest:
    """The manifest in an artifact's folder, which is named by stage and fingerprint."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    return parse_manifest(data, str(path), folder.parent.name, folder.name)


def file_names(folder: Path) -> list[str]:
    """Every file below `folder` but its manifest, as sorted paths with slashes."""
    names = (path.relative_to(folder).as_posix() for path in files_below(folder))
    return sorted(name for name in names if name != MANIFEST)


def seal(path: Path) -> FileEntry:
    """Flush a file to disk, so that a manifest never outlives what it names, and describe it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return FileEntry(path.stat().st_size, file_sha256(path))


def differences(folder: Path, manifest: Manifest, contents: bool = False) -> list[str]:
    """How the files differ from the manifest, one a line: names and sizes, and contents of files younger than it.

    With `contents` every file is read, and files that the manifest does not name are told.
    """
    try:
        committed = (folder / MANIFEST).stat().st_mtime_ns
        checks = ((name, _problem(folder / name, entry, committed, contents)) for name, entry in manifest.files.items())
        problems = [f"{name} {problem}" for name, problem in checks if problem]
        if contents:
            extra = set(file_names(folder)) - set(manifest.files)
            problems += [f"{name} is not in the manifest" for name in sorted(extra)]
    except OSError as error:
        raise ArtifactError(f"cannot read {error.filename or folder}: {error.strerror or error}") from error
    return problems


def _problem(path: Path, entry: FileEntry, committed: int, contents: bool) -> str | None:
    if not path.is_file():
        return "is missing"
    stat = path.stat()
    if stat.st_size != entry.size:
        return f"has {stat.st_size} bytes instead of {entry.size}"
    # A file that is younger than the manifest was touched after the commit, so its contents are looked at.
    if (contents or stat.st_mtime_ns > committed) and file_sha256(path) != entry.sha256:
        return "was changed (its SHA-256 differs)"
    return None
