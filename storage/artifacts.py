"""The artifact store: immutable folders, committed by writing ``manifest.json`` last.

Layout under one root: ``artifacts/<stage>/<fingerprint>/`` (finished), ``work/<stage>/<fingerprint>/`` (unfinished,
resumable; ``out/`` becomes the artifact, ``scratch/`` is thrown away), ``cache/`` and ``channels/<name>.json``.

A commit writes the manifest into ``out/`` and then renames the folder, a removal renames the folder and then deletes
it: under ``artifacts/`` there are whole artifacts or none, whenever a process is killed.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from paraclip_core.errors import ArtifactError
from storage.atomic import file_sha256, read_json, remove_temporary, storage_error, sync_folder, write_json
from storage.locks import lock

__all__ = ["Artifact", "ArtifactStore", "Draft", "FileEntry", "Manifest", "WorkFolder"]

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
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


@dataclass(frozen=True)
class WorkFolder:
    """The unfinished work of one fingerprint."""

    out: Path
    """What will be the artifact."""
    scratch: Path
    """State for resuming; not part of the artifact."""


@dataclass(frozen=True)
class Draft:
    """All that a manifest says besides the files."""

    stage: str
    fingerprint: str
    stage_version: int
    inputs: dict[str, str]
    options: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)


class ArtifactStore:
    """Finished and unfinished artifacts under one root folder."""

    def __init__(self, root: Path | str) -> None:
        """`root` is made when something is first written."""
        self.root = Path(root).absolute()

    @property
    def cache(self) -> Path:
        """Folder of the caches."""
        return self.root / "cache"

    def path(self, stage: str, fingerprint: str) -> Path:
        """Where the finished artifact is or will be."""
        return self.root / "artifacts" / stage / fingerprint

    def work_path(self, stage: str, fingerprint: str) -> Path:
        """Where its unfinished work is."""
        return self.root / "work" / stage / fingerprint

    def find(self, stage: str, fingerprint: str) -> Artifact | None:
        """The finished artifact, if it is there and sound by its files' names and sizes.

        Raises:
            ArtifactError: it was edited, cut short or written by another version.
        """
        folder = self.path(stage, fingerprint)
        if not (folder / MANIFEST).exists():
            return None
        artifact = Artifact(folder, _read_manifest(folder))
        problems = _check(artifact, contents=False)
        if problems:
            raise ArtifactError(_damaged(artifact, problems))
        return artifact

    def resumable(self, stage: str, fingerprint: str) -> bool:
        """Whether unfinished work of this fingerprint is there."""
        return self.work_path(stage, fingerprint).is_dir()

    @contextmanager
    def writing(self, stage: str, fingerprint: str, poll: Callable[[], None] | None = None) -> Iterator[WorkFolder]:
        """Hold the fingerprint's lock and get its work folder, with whatever an earlier try left in it."""
        work = self.work_path(stage, fingerprint)
        with lock(work.with_name(f"{fingerprint}.lock"), poll=poll):
            folder = WorkFolder(work / "out", work / "scratch")
            try:
                self._clear(self.path(stage, fingerprint))
                folder.out.mkdir(parents=True, exist_ok=True)
                # Left by a commit that was cut off before the rename.
                (folder.out / MANIFEST).unlink(missing_ok=True)
                folder.scratch.mkdir(parents=True, exist_ok=True)
                # A kill in the middle of a write leaves its temporary file, which must not become part of the artifact.
                for stale in folder.out.rglob(".*.tmp"):
                    stale.unlink(missing_ok=True)
            except OSError as error:
                raise storage_error(error, work) from error
            yield folder

    def commit(self, draft: Draft, metrics: dict[str, Any], wall_seconds: float) -> Artifact:
        """Turn the work folder's ``out/`` into the finished artifact. Call it while holding the lock."""
        work, target = self.work_path(draft.stage, draft.fingerprint), self.path(draft.stage, draft.fingerprint)
        out = work / "out"
        try:
            remove_temporary(out)
            manifest = Manifest(
                **vars(draft),
                files={name: _seal(out / name) for name in _names(out)},
                metrics=metrics,
                wall_seconds=round(wall_seconds, 3),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            write_json(out / MANIFEST, asdict(manifest))
            target.parent.mkdir(parents=True, exist_ok=True)
            out.rename(target)
            sync_folder(target.parent)
        except OSError as error:
            raise storage_error(error, target) from error
        shutil.rmtree(work, ignore_errors=True)
        return Artifact(target, manifest)

    def _clear(self, target: Path) -> None:
        """Delete a folder without a manifest: somebody was deleting it, so it must not come back by halves."""
        if target.is_dir() and not (target / MANIFEST).exists():
            log.warning("%s has no manifest and is deleted", target)
            shutil.rmtree(target)

    def list(self, stage: str | None = None) -> list[Artifact]:
        """All finished artifacts, by stage and age; damaged manifests are logged and left out."""
        found = []
        for folder in self._folders(stage):
            try:
                found.append(Artifact(folder, _read_manifest(folder)))
            except ArtifactError as error:
                log.warning("%s", error)
        return sorted(found, key=lambda artifact: (artifact.stage, artifact.manifest.created))

    def unreadable(self) -> list[tuple[str, str, str]]:
        """Stage, fingerprint and problem of every artifact whose manifest is damaged, which :meth:`list` leaves out."""
        found = []
        for folder in self._folders(None):
            try:
                _read_manifest(folder)
            except ArtifactError as error:
                found.append((folder.parent.name, folder.name, str(error)))
        return found

    def _folders(self, stage: str | None) -> Iterator[Path]:
        """Folders with a manifest. The stage comes from users, so it is compared and not put into a pattern."""
        for manifest in sorted((self.root / "artifacts").glob(f"*/*/{MANIFEST}")):
            if stage is None or manifest.parent.parent.name == stage:
                yield manifest.parent

    def resolve(self, prefix: str) -> Artifact:
        """The one artifact whose fingerprint starts with `prefix` (``stage/prefix`` narrows it down).

        Raises:
            ArtifactError: there is none, or more than one.
        """
        stage, _, start = prefix.rpartition("/")
        found = [a for a in self.list(stage or None) if a.fingerprint.startswith(start)]
        if len(found) == 1:
            return found[0]
        what = "no artifact" if not found else f"{len(found)} artifacts"
        names = ", ".join(f"{a.stage}/{a.fingerprint[:12]}" for a in found[:5])
        raise ArtifactError(f"{what} under {self.root} begins with {prefix!r} {names}; see `paraclip artifacts ls`")

    def verify(self, artifact: Artifact) -> list[str]:
        """Compare every file with the manifest, contents included; returns the differences, one a line."""
        return _check(artifact, contents=True)

    def remove(self, artifact: Artifact) -> None:
        """Delete an artifact, at once for all who look.

        Raises:
            ArtifactError: the root is read-only.
        """
        trash = self.root / "trash"
        try:
            trash.mkdir(parents=True, exist_ok=True)
            artifact.path.rename(trash / uuid.uuid4().hex)
        except OSError as error:
            raise storage_error(error, artifact.path) from error
        # With this one goes what an earlier removal that was cut off has left.
        for folder in trash.iterdir():
            shutil.rmtree(folder, ignore_errors=True)

    def unfinished(self) -> list[tuple[str, str, Path]]:
        """Stage, fingerprint and folder of every unfinished work."""
        folders = sorted(p for p in (self.root / "work").glob("*/*") if p.is_dir())
        return [(p.parent.name, p.name, p) for p in folders]

    def set_channel(self, name: str, value: dict[str, Any]) -> None:
        """Point a channel, such as ``production``, at something."""
        write_json(self.root / "channels" / f"{_safe_name(name)}.json", value)

    def channel(self, name: str) -> dict[str, Any] | None:
        """What a channel points at, None if there is no such channel."""
        path = self.root / "channels" / f"{_safe_name(name)}.json"
        return read_json(path) if path.exists() else None

    def channels(self) -> dict[str, dict[str, Any]]:
        """Every channel by its name."""
        return {path.stem: read_json(path) for path in sorted((self.root / "channels").glob("*.json"))}


def _safe_name(name: str) -> str:
    if not name or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise ArtifactError(f"{name!r} cannot be a channel's name; use letters, digits and dashes")
    return name


def _names(folder: Path) -> list[str]:
    """Every file below `folder` but its manifest, as sorted paths with slashes."""
    found = [
        (Path(directory) / name).relative_to(folder).as_posix()
        for directory, _, names in os.walk(folder)
        for name in names
    ]
    return sorted(name for name in found if name != MANIFEST)


def _seal(path: Path) -> FileEntry:
    """Flush a file to disk, so that a manifest never outlives what it names, and describe it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return FileEntry(path.stat().st_size, file_sha256(path))


def _read_manifest(folder: Path) -> Manifest:
    raw = read_json(folder / MANIFEST)
    try:
        if raw["schema_version"] != SCHEMA_VERSION:
            raise ArtifactError(
                f"{folder / MANIFEST} has schema version {raw['schema_version']}, this release reads {SCHEMA_VERSION}; "
                f"use the paraclip that wrote it, or delete {folder} to have it made again"
            )
        if (raw["stage"], raw["fingerprint"]) != (folder.parent.name, folder.name):
            raise ArtifactError(
                f"{folder / MANIFEST} belongs to {raw['stage']}/{raw['fingerprint']}; move or delete the folder"
            )
        raw["files"] = {name: FileEntry(**entry) for name, entry in raw["files"].items()}
        return Manifest(**raw)
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{folder / MANIFEST} lacks or has an unknown field ({error}); delete {folder}") from error


def _check(artifact: Artifact, contents: bool) -> list[str]:
    try:
        committed = (artifact.path / MANIFEST).stat().st_mtime_ns
        checks = (_check_file(artifact, name, committed, contents) for name in artifact.manifest.files)
        problems = [problem for problem in checks if problem]
        if contents:
            extra = set(_names(artifact.path)) - set(artifact.manifest.files)
            problems += [f"{name} is not in the manifest" for name in sorted(extra)]
    except OSError as error:
        raise ArtifactError(f"cannot read {error.filename or artifact.path}: {error.strerror or error}") from error
    return problems


def _check_file(artifact: Artifact, name: str, committed: int, contents: bool) -> str | None:
    path, entry = artifact.path / name, artifact.manifest.files[name]
    if not path.is_file():
        return f"{name} is missing"
    stat = path.stat()
    if stat.st_size != entry.size:
        return f"{name} has {stat.st_size} bytes instead of {entry.size}"
    # A file that is younger than the manifest was touched after the commit, so its contents are looked at.
    if (contents or stat.st_mtime_ns > committed) and file_sha256(path) != entry.sha256:
        return f"{name} was changed (its SHA-256 differs)"
    return None


def _damaged(artifact: Artifact, problems: list[str]) -> str:
    return (
        f"artifact {artifact.stage}/{artifact.fingerprint} is damaged: {'; '.join(problems[:3])}. "
        f"Delete {artifact.path} to have it made again, or restore it from a copy"
    )
