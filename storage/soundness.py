"""What lies in an artifact's folder, held against its manifest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from paraclip_core.errors import ArtifactError
from storage.files import file_sha256
from storage.manifests import MANIFEST, FileEntry, Manifest, parse_manifest

__all__ = ["differences", "file_names", "files_below", "read_manifest", "seal"]


def file_names(folder: Path) -> list[str]:
    """Every file below `folder` but its manifest, as sorted paths with slashes.

    Raises:
        OSError: a folder cannot be listed, so that nobody knows what is in it.
    """
    found = (path.relative_to(folder).as_posix() for path in files_below(folder))
    return sorted(name for name in found if name != MANIFEST)


def files_below(folder: Path, changing: bool = False) -> Iterator[Path]:
    """Every file below `folder`, in any order; where it is `changing`, folders may go while it is read.

    Raises:
        OSError: a folder cannot be listed, so that nobody knows what is in it.
    """

    def failed(error: OSError) -> None:
        if not (changing and isinstance(error, FileNotFoundError)):
            raise error

    for directory, _, names in os.walk(folder, onerror=failed):
        yield from (Path(directory) / name for name in names)


def seal(path: Path) -> FileEntry:
    """Flush a file to disk, so that a manifest never outlives what it names, and describe it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return FileEntry(path.stat().st_size, file_sha256(path))


def read_manifest(folder: Path) -> Manifest:
    """The manifest in an artifact's folder, which is named by stage and fingerprint.

    Raises:
        ArtifactError: it cannot be read, is damaged, or belongs to another artifact.
    """
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    return parse_manifest(data, str(path), folder.parent.name, folder.name)


def differences(folder: Path, manifest: Manifest, contents: bool = False) -> list[str]:
    """What is not as the manifest says, one a line: names and sizes, and the contents of files younger than it.

    With `contents` every file is read, and files that the manifest does not know are named.

    Raises:
        ArtifactError: the folder cannot be read.
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
