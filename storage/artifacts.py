"""The artifact store: immutable folders, committed by writing ``manifest.json`` last.

Layout under one root: ``artifacts/<stage>/<fingerprint>/`` (finished), ``work/<stage>/<fingerprint>/`` (unfinished,
resumable; ``out/`` becomes the artifact, ``scratch/`` is thrown away), ``cache/`` and ``channels/<name>.json``.

A commit writes the manifest into ``out/`` and then renames the folder, a removal renames the folder and then deletes
it: under ``artifacts/`` there are whole artifacts or none, whenever a process is killed.

:class:`paraclip.storage.roots.RemoteStore` is the same store, shared through an object store. Every method raises
ArtifactError if an object store fails or what it reads is damaged; errors of the operating system pass.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from paraclip.storage.files import (
    file_sha256,
    files_below,
    parse_json,
    remove_temporary,
    safe_name,
    sync_folder,
    write_json,
)
from paraclip.storage.locks import lock
from paraclip_core.errors import ArtifactError, UnknownNameError

if TYPE_CHECKING:
    from paraclip.storage.object_store import RemoteFolder

log = logging.getLogger(__name__)

LONGEST_NAME = 200
"""Most bytes of a channel's name: file systems allow 255, and a file's ending and a draft's marks need some."""
MANIFEST = "manifest.json"
SOURCE = "source:"
"""Prefix of the names of inputs from outside the store."""
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class FileEntry:
    """A file of an artifact: its size in bytes and the SHA-256 of its bytes."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Draft:
    """Everything that a manifest says except the files."""

    stage: str
    fingerprint: str
    stage_version: int
    inputs: dict[str, str]
    """Fingerprint of each input, by its name."""
    options: dict[str, Any]
    """The meaning-bearing options."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the software that makes it."""


@dataclass(frozen=True, kw_only=True)
class Manifest(Draft):
    """What an artifact is, where it came from and what is in it."""

    files: dict[str, FileEntry]
    """Every file, by its path inside the artifact."""
    metrics: dict[str, Any]
    """What the stage measured: row counts, scores."""
    wall_seconds: float
    created: str
    """ISO 8601, UTC."""
    schema_version: int = SCHEMA_VERSION

    def size(self) -> int:
        """Total bytes of all files."""
        return sum(entry.size for entry in self.files.values())


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its folder and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def stage(self) -> str:
        return self.manifest.stage

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint


@dataclass(frozen=True)
class WorkFolder:
    """The unfinished work of one fingerprint."""

    out: Path
    """Folder that becomes the artifact."""
    scratch: Path
    """State for resuming; not part of the artifact."""
    push: Callable[[], None] = lambda: None
    """Call it now and then: it copies checkpoints to where they survive the loss of this machine."""


class ArtifactStore:
    """Finished and unfinished artifacts under one root folder."""

    def __init__(self, root: Path | str) -> None:
        """`root` is created on the first write."""
        self.root = Path(root).absolute()

    @property
    def remote(self) -> RemoteFolder | None:
        """The object store that the root is shared through, if any."""
        return None

    @property
    def location(self) -> str:
        """What opens this store again, here or in another process."""
        return str(self.root)

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

    # Looking

    def find(self, stage: str, fingerprint: str) -> Artifact | None:
        """The finished artifact with its files here, None if there is none; file names and sizes are checked."""
        folder = self.path(stage, fingerprint)
        if not self._finished(stage, fingerprint):
            return None
        artifact = Artifact(folder, read_manifest(folder))
        if problems := differences(folder, artifact.manifest):
            raise ArtifactError(
                f"artifact {stage}/{fingerprint} is damaged: {'; '.join(problems[:3])}. "
                f"Delete {folder} to have it made again, or restore it from a copy"
            )
        return artifact

    def peek(self, stage: str, fingerprint: str) -> Artifact | None:
        """As :meth:`find`, but nothing is downloaded, so the files of the artifact may not be here."""
        return self.find(stage, fingerprint)

    def expect(self, stage: str, fingerprint: str, why: str) -> Artifact:
        """A finished artifact that must exist, with its files; `why` says who needs it."""
        artifact = self.find(stage, fingerprint)
        if artifact is None:
            raise ArtifactError(
                f"{why}: the artifact {stage}/{fingerprint} is not under {self.location}; run {stage} first "
                "(and again, if a source file has changed since)"
            )
        return artifact

    def download(self, artifact: Artifact) -> Artifact:
        """An artifact that :meth:`peek` or :meth:`list` returned, with its files here; raises if it is gone."""
        return self.expect(artifact.stage, artifact.fingerprint, "it was there")

    def uri(self, artifact: Artifact) -> str:
        """Its folder, or its address where it has not been downloaded."""
        return str(artifact.path)

    def list(self, stage: str | None = None) -> list[Artifact]:
        """All finished artifacts, by stage and age; damaged manifests are logged and skipped.

        The files of one that lies on an object store may not be here.
        """
        artifacts = []
        for name, fingerprint, manifest in self._manifests(stage):
            if isinstance(manifest, ArtifactError):
                log.warning("%s", manifest)
            else:
                artifacts.append(Artifact(self.path(name, fingerprint), manifest))
        return sorted(artifacts, key=lambda artifact: (artifact.stage, artifact.manifest.created))

    def unreadable(self) -> list[tuple[str, str, str]]:
        """Stage, fingerprint and problem of every artifact whose manifest is damaged, which :meth:`list` leaves out."""
        entries = self._manifests(None)
        return [(stage, name, str(error)) for stage, name, error in entries if isinstance(error, ArtifactError)]

    def named(self, name: str, stages: Sequence[str] = ()) -> Artifact:
        """The artifact of a channel's name, or else of a fingerprint's ``[STAGE/]START``; its files may not be here."""
        channel = None if "/" in name or name.startswith(".") else self.channel(name)
        if channel is None:
            return self.resolve(name, stages)
        stage, fingerprint = str(channel.get("stage")), str(channel.get("fingerprint"))
        artifact = self.peek(stage, fingerprint)
        if artifact is None:
            raise ArtifactError(
                f"the artifact {stage}/{fingerprint} of the channel {name!r} is gone from {self.location}; run again"
            )
        return artifact

    def resolve(self, prefix: str, stages: Sequence[str] = ()) -> Artifact:
        """The one artifact (of `stages`, if any) whose fingerprint starts with `prefix` (or ``stage/prefix``)."""
        stage, _, start = prefix.rpartition("/")
        matches = [
            artifact
            for artifact in self.list(stage or None)
            if artifact.fingerprint.startswith(start) and (stage or not stages or artifact.stage in stages)
        ]
        if len(matches) == 1:
            return matches[0]
        if matches:
            names = ", ".join(f"{match.stage}/{match.fingerprint[:12]}" for match in matches[:5])
            problem = f"{len(matches)} artifacts under {self.location} begin with {prefix!r} ({names})"
        else:
            kind = f" of {' or '.join(stages)}" if stages and not stage else ""
            problem = f"no artifact{kind} under {self.location} begins with {prefix!r}, and no channel has that name"
        raise UnknownNameError(f"{problem}; see `paraclip artifacts ls`")

    def verify(self, artifact: Artifact) -> list[str]:
        """Compare every file with the manifest, contents included; returns the differences, one per line."""
        return differences(artifact.path, artifact.manifest, contents=True)

    def _finished(self, stage: str, fingerprint: str) -> bool:
        return (self.path(stage, fingerprint) / MANIFEST).exists()

    def _manifests(self, stage: str | None) -> Iterator[tuple[str, str, Manifest | ArtifactError]]:
        """Stage, fingerprint and manifest of every artifact, or why the manifest cannot be read."""
        # The stage comes from users, so it is compared and not put into a pattern.
        for path in sorted((self.root / "artifacts").glob(f"*/*/{MANIFEST}")):
            folder = path.parent
            if stage in (None, folder.parent.name):
                yield folder.parent.name, folder.name, or_error(partial(read_manifest, folder))

    # Making

    @contextmanager
    def writing(self, stage: str, fingerprint: str, poll: Callable[[], None] | None = None) -> Iterator[WorkFolder]:
        """Hold the fingerprint's lock and get its work folder, with whatever an earlier try left in it."""
        work = self.work_path(stage, fingerprint)
        with lock(work.with_name(f"{fingerprint}.lock"), poll=poll):
            with self._shared_work(stage, fingerprint, poll) as push:
                yield self._work_folder(stage, fingerprint, push)
            if self._finished(stage, fingerprint):
                # If another process finished it while this one waited, the folder was made again.
                shutil.rmtree(work, ignore_errors=True)

    @contextmanager
    def _shared_work(
        self, stage: str, fingerprint: str, poll: Callable[[], None] | None
    ) -> Iterator[Callable[[], None]]:
        """Share it with other machines; returns what pushes checkpoints."""
        yield lambda: None

    def _work_folder(self, stage: str, fingerprint: str, push: Callable[[], None]) -> WorkFolder:
        work, target = self.work_path(stage, fingerprint), self.path(stage, fingerprint)
        folder = WorkFolder(work / "out", work / "scratch", push)
        if target.is_dir() and not (target / MANIFEST).exists():
            # Somebody was deleting it, so it must not come back half deleted.
            log.warning("%s has no manifest and is deleted", target)
            shutil.rmtree(target)
        folder.out.mkdir(parents=True, exist_ok=True)
        folder.scratch.mkdir(parents=True, exist_ok=True)
        # A kill in the middle of a write leaves its temporary file, which must not become part of the artifact.
        remove_temporary(folder.out)
        return folder

    def commit(self, draft: Draft, metrics: dict[str, Any], wall_seconds: float) -> Artifact:
        """Turn the work folder's ``out/`` into the finished artifact. Call it while holding the lock."""
        work, target = self.work_path(draft.stage, draft.fingerprint), self.path(draft.stage, draft.fingerprint)
        out = work / "out"
        remove_temporary(out)
        manifest = Manifest(
            **vars(draft),
            files={name: seal(out / name) for name in file_names(out)},
            metrics=metrics,
            wall_seconds=round(wall_seconds, 3),
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        for folder in {out / parent for name in manifest.files for parent in PurePath(name).parents} - {out}:
            sync_folder(folder)
        write_json(out / MANIFEST, asdict(manifest))
        target.parent.mkdir(parents=True, exist_ok=True)
        out.rename(target)
        sync_folder(target.parent)
        shutil.rmtree(work, ignore_errors=True)
        return Artifact(target, manifest)

    def resumable(self, stage: str, fingerprint: str) -> bool:
        """Whether unfinished work of this fingerprint is there."""
        return self.work_path(stage, fingerprint).is_dir()

    def unfinished(self) -> list[tuple[str, str, Path]]:
        """Stage, fingerprint and folder of all unfinished work; for work elsewhere, the folder that it would have."""
        folders = [path for path in sorted((self.root / "work").glob("*/*")) if path.is_dir()]
        return [(path.parent.name, path.name, path) for path in folders]

    # Deleting

    def remove(self, artifact: Artifact) -> None:
        """Delete an artifact; for everyone who looks, it disappears at once."""
        trash = self.root / "trash"
        trash.mkdir(parents=True, exist_ok=True)
        artifact.path.rename(trash / uuid.uuid4().hex)
        # This also deletes what an earlier, interrupted removal has left.
        for folder in trash.iterdir():
            shutil.rmtree(folder, ignore_errors=True)

    def discard(self, stage: str, fingerprint: str) -> None:
        """Delete unfinished work."""
        work = self.work_path(stage, fingerprint)
        with lock(work.with_name(f"{fingerprint}.lock"), wait_seconds=0):
            self._delete_shared_work(stage, fingerprint)
            if work.is_dir():
                shutil.rmtree(work)

    def _delete_shared_work(self, stage: str, fingerprint: str) -> None:
        """Delete what other machines could resume from."""

    # Channels

    def channel_lock(self, name: str) -> AbstractContextManager[None]:
        """Lock a channel, so that what is read from it stays true until it is set."""
        return lock(self.root / "channels" / f"{safe_channel(name)}.lock")

    def set_channel(self, name: str, value: dict[str, Any]) -> None:
        """Point a channel, such as ``production``, at something."""
        write_json(self.root / "channels" / f"{safe_channel(name)}.json", value)

    def channel(self, name: str) -> dict[str, Any] | None:
        """What a channel points at, None if there is no such channel."""
        return self._channel(safe_channel(name))

    def channels(self) -> dict[str, dict[str, Any]]:
        """Every channel by its name."""
        values = {name: self._channel(name) for name in self._channel_names()}
        return {name: value for name, value in values.items() if value is not None}

    def _channel(self, name: str) -> dict[str, Any] | None:
        data, where = self._read_channel(name)
        try:
            value = None if data is None else parse_json(data)
        except ValueError as error:
            raise ArtifactError(f"{where} is not valid JSON ({error}); restore or delete it") from error
        if data is not None and not (isinstance(value, dict) and isinstance(value.get("stages", {}), dict)):
            raise ArtifactError(
                f"{where} is not a channel: expected an object with a fingerprint; restore or delete it"
            )
        return value

    def _read_channel(self, name: str) -> tuple[bytes | None, str]:
        """The bytes of a channel's file, and where it lies."""
        path = self.root / "channels" / f"{name}.json"
        try:
            return path.read_bytes(), str(path)
        except (FileNotFoundError, NotADirectoryError):
            return None, str(path)

    def _channel_names(self) -> list[str]:
        return sorted(path.stem for path in (self.root / "channels").glob("*.json"))


def safe_channel(name: str) -> str:
    """Return a channel's name unchanged; raises UnknownNameError if it cannot be one."""
    if not name or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise UnknownNameError(f"{name!r} cannot be a channel's name; use letters, digits and dashes")
    if len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
        raise UnknownNameError(f"{name[:40]!r}… is not a valid name: a channel's has at most {LONGEST_NAME} bytes")
    return name


def sources_of(inputs: Mapping[str, str]) -> dict[str, str]:
    """Fingerprints of the inputs from outside the store, by their names without the prefix."""
    return {name.removeprefix(SOURCE): value for name, value in inputs.items() if name.startswith(SOURCE)}


def or_error(read: Callable[[], Manifest]) -> Manifest | ArtifactError:
    """A manifest, or the reason why it cannot be read."""
    try:
        return read()
    except ArtifactError as error:
        return error


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
        raise ArtifactError(f"{where} lacks a field or has an unknown one ({error}); delete {home}") from error


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
    """Flush a file to disk, so that a manifest never outlives what it names; returns its entry."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return FileEntry(path.stat().st_size, file_sha256(path))


def differences(folder: Path, manifest: Manifest, contents: bool = False) -> list[str]:
    """How the files differ from the manifest, one per line: names and sizes, and contents of files younger than it.

    With `contents`, every file is read, and files that the manifest does not name are reported.
    """
    committed = (folder / MANIFEST).stat().st_mtime_ns
    checks = ((name, _problem(folder / name, entry, committed, contents)) for name, entry in manifest.files.items())
    problems = [f"{name} {problem}" for name, problem in checks if problem]
    if contents:
        extra = set(file_names(folder)) - set(manifest.files)
        problems += [f"{name} is not in the manifest" for name in sorted(extra)]
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
