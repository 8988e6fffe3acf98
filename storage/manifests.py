"""What a manifest says, and how it is read wherever it lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paraclip_core.errors import ArtifactError
from storage.files import parse_json

__all__ = ["MANIFEST", "SOURCE", "FileEntry", "Manifest", "parse_manifest", "safe_name", "sources_of"]

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


def parse_manifest(data: bytes, where: str, stage: str, fingerprint: str) -> Manifest:
    """The manifest in `data`, which lies at `where` and must be that of `stage` and `fingerprint`.

    Raises:
        ArtifactError: it is not JSON, of another version, of another artifact, or lacks a field.
    """
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


def sources_of(inputs: Mapping[str, str]) -> dict[str, str]:
    """Fingerprints of the inputs from outside the store, by their names without the prefix."""
    return {name.removeprefix(SOURCE): value for name, value in inputs.items() if name.startswith(SOURCE)}


def safe_name(name: str) -> str:
    """A file's path below a folder, as it is.

    Raises:
        ArtifactError: it would lead out of the folder.
    """
    if not name or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ArtifactError(f"{name!r} cannot be the path of a file below a folder; delete what names it")
    return name
