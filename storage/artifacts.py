"""The artifact store: immutable folders, committed by writing ``manifest.json`` last.

Layout under one root: ``artifacts/<stage>/<fingerprint>/`` (finished), ``work/<stage>/<fingerprint>/`` (unfinished,
resumable; ``out/`` becomes the artifact, ``scratch/`` is thrown away), ``cache/`` and ``channels/<name>.json``.

A commit writes the manifest into ``out/`` and then renames the folder, a removal renames the folder and then deletes
it: under ``artifacts/`` there are whole artifacts or none, whenever a process is killed.

With a :class:`storage.mirror.Mirror` the folder is this machine's working copy of a root on an object store.
"""

from __future__ import annotations

import difflib
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from paraclip_core.errors import ArtifactError, LockedError, UnknownNameError
from storage.channels import as_channel
from storage.files import read_json, remove_temporary, storage_error, sync_folder, write_json
from storage.holders import Holder, holders_at, holders_below
from storage.locks import lock
from storage.manifests import MANIFEST, FileEntry, Manifest
from storage.run_marks import marked
from storage.soundness import differences, file_names, read_manifest, seal

if TYPE_CHECKING:
    from storage.mirror import Mirror

__all__ = ["Artifact", "ArtifactStore", "Draft", "FileEntry", "Manifest", "WorkFolder"]

log = logging.getLogger(__name__)

LONGEST_NAME = 200
"""Bytes of a channel's name: file systems take 255, and a file's ending and a draft's marks are more."""


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


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class WorkFolder:
    """The unfinished work of one fingerprint."""

    out: Path
    """What will be the artifact."""
    scratch: Path
    """State for resuming; not part of the artifact."""
    push: Callable[[], None] = _nothing
    """To be called now and then, between two writes: keeps what is there where a lost machine does not matter."""


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

    def __init__(self, root: Path | str, mirror: Mirror | None = None) -> None:
        """`root` is made when something is first written; `mirror` stands for the object store that it belongs to."""
        self.root = Path(root).absolute()
        self.mirror = mirror

    @property
    def location(self) -> str:
        """What opens this store again, here or in another process."""
        return str(self.root) if self.mirror is None else self.mirror.remote.url

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
        """The finished artifact, if it is there and sound by its files' names and sizes; its files are here.

        Raises:
            ArtifactError: it was edited, cut short or written by another version.
        """
        found = self._here(stage, fingerprint)
        if self.mirror is None:
            return found
        if found is None:
            fetched = self.mirror.artifacts.fetch(stage, fingerprint, self.path(stage, fingerprint))
            return self._here(stage, fingerprint) if fetched else None
        # What an interrupted commit has not uploaded.
        return found if self.mirror.deliver(found.manifest, found.path) else self._here(stage, fingerprint)

    def peek(self, stage: str, fingerprint: str) -> Artifact | None:
        """As :meth:`find`, but nothing is downloaded: the files of the artifact may not be here.

        Raises:
            ArtifactError: it was edited, cut short or written by another version.
        """
        if self.mirror is None or self._finished(stage, fingerprint):
            return self.find(stage, fingerprint)
        manifest = self.mirror.artifacts.manifest(stage, fingerprint)
        return None if manifest is None else Artifact(self.path(stage, fingerprint), manifest)

    def download(self, artifact: Artifact) -> Artifact:
        """An artifact that :meth:`peek` or :meth:`list` named, with its files here.

        Raises:
            ArtifactError: it was deleted meanwhile, or is damaged.
        """
        found = self.find(artifact.stage, artifact.fingerprint)
        if found is None:
            name = f"{artifact.stage}/{artifact.fingerprint}"
            raise ArtifactError(f"the artifact {name} is gone from {self.location}; run {artifact.stage} again")
        return found

    def _here(self, stage: str, fingerprint: str) -> Artifact | None:
        folder = self.path(stage, fingerprint)
        if not (folder / MANIFEST).exists():
            return None
        artifact = Artifact(folder, read_manifest(folder))
        problems = differences(artifact.path, artifact.manifest)
        if problems:
            raise ArtifactError(_damaged(artifact, problems))
        return artifact

    def uri(self, artifact: Artifact) -> str:
        """Its folder, or its address where it has not been downloaded."""
        if self.mirror is None or artifact.path.is_dir():
            return str(artifact.path)
        return self.mirror.artifacts.address(artifact.stage, artifact.fingerprint)

    def resumable(self, stage: str, fingerprint: str) -> bool:
        """Whether unfinished work of this fingerprint is there."""
        here = self.work_path(stage, fingerprint).is_dir()
        return here or (self.mirror is not None and self.mirror.has_work(stage, fingerprint))

    @contextmanager
    def writing(
        self,
        stage: str,
        fingerprint: str,
        poll: Callable[[], None] | None = None,
        reads: Mapping[str, str] | None = None,
    ) -> Iterator[WorkFolder]:
        """Hold the fingerprint's lock and get its work folder, with whatever an earlier try left in it.

        Meanwhile :meth:`holders` tells of the artifacts that it `reads`, by stage and fingerprint.
        """
        work, says = self.work_path(stage, fingerprint), {"reads": dict(reads or {})}
        with lock(work.with_name(f"{fingerprint}.lock"), poll=poll, says=says):
            if self.mirror is None:
                yield self._work_folder(stage, fingerprint)
            else:
                with self.mirror.working(stage, fingerprint, work, poll, says=says) as unfinished:
                    yield self._work_folder(stage, fingerprint, unfinished.keep)
                    if self._finished(stage, fingerprint):
                        unfinished.finish(push=False)
                        try:
                            unfinished.delete()
                        except ArtifactError as error:
                            # The artifact is finished all the same.
                            log.warning("left-over unfinished work (`paraclip artifacts gc`): %s", error)
            if self._finished(stage, fingerprint):
                # Where another process had finished it while this one waited, the folder was made anew.
                shutil.rmtree(work, ignore_errors=True)

    def _finished(self, stage: str, fingerprint: str) -> bool:
        return (self.path(stage, fingerprint) / MANIFEST).exists()

    def _work_folder(self, stage: str, fingerprint: str, keep: Callable[[], None] = _nothing) -> WorkFolder:
        work = self.work_path(stage, fingerprint)
        folder = WorkFolder(work / "out", work / "scratch", keep)
        try:
            self._clear(self.path(stage, fingerprint))
            folder.out.mkdir(parents=True, exist_ok=True)
            folder.scratch.mkdir(parents=True, exist_ok=True)
            # A kill in the middle of a write leaves its temporary file, which must not become part of the artifact.
            remove_temporary(folder.out)
        except OSError as error:
            raise storage_error(error, work) from error
        return folder

    def push_unfinished(self, stage: str, fingerprint: str) -> None:
        """Push what a process that died has left, where there is an object store to push it to."""
        work = self.work_path(stage, fingerprint)
        if self.mirror is None or not work.is_dir():
            return
        # Held by a living process, it is that one's affair.
        with (
            suppress(LockedError),
            lock(work.with_name(f"{fingerprint}.lock"), wait_seconds=0),
            self.mirror.working(stage, fingerprint, work, wait_seconds=0) as unfinished,
        ):
            unfinished.finish(push=True)

    def discard(self, stage: str, fingerprint: str) -> None:
        """Delete unfinished work.

        Raises:
            LockedError: a living process writes it.
            ArtifactError: it cannot be deleted.
        """
        work = self.work_path(stage, fingerprint)
        with lock(work.with_name(f"{fingerprint}.lock"), wait_seconds=0, judge=True):
            if self.mirror is not None:
                # A lost machine's lock is found dead after a while only, and its work must not stay for ever.
                patience = self.mirror.patience
                with self.mirror.working(stage, fingerprint, work, wait_seconds=patience, pull=False) as unfinished:
                    unfinished.delete()
            try:
                if work.is_dir():
                    shutil.rmtree(work)
            except OSError as error:
                raise storage_error(error, work) from error

    def commit(self, draft: Draft, metrics: dict[str, Any], wall_seconds: float) -> Artifact:
        """Turn the work folder's ``out/`` into the finished artifact. Call it while holding the lock."""
        work, target = self.work_path(draft.stage, draft.fingerprint), self.path(draft.stage, draft.fingerprint)
        out = work / "out"
        try:
            remove_temporary(out)
            manifest = Manifest(
                **vars(draft),
                files={name: seal(out / name) for name in file_names(out)},
                metrics=metrics,
                wall_seconds=round(wall_seconds, 3),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            for folder in {out / parent for name in manifest.files for parent in PurePath(name).parents} - {out}:
                sync_folder(folder)
            if self.mirror is not None:
                self.mirror.promise(draft.stage, draft.fingerprint)
            write_json(out / MANIFEST, asdict(manifest))
            target.parent.mkdir(parents=True, exist_ok=True)
            out.rename(target)
            sync_folder(target.parent)
        except OSError as error:
            raise storage_error(error, target) from error
        shutil.rmtree(work, ignore_errors=True)
        if self.mirror is not None and not self.mirror.deliver(manifest, target):
            return Artifact(target, read_manifest(target))
        return Artifact(target, manifest)

    def _clear(self, target: Path) -> None:
        """Delete a folder without a manifest: somebody was deleting it, so it must not come back by halves."""
        if target.is_dir() and not (target / MANIFEST).exists():
            log.warning("%s has no manifest and is deleted", target)
            shutil.rmtree(target)

    def list(self, stage: str | None = None) -> list[Artifact]:
        """All finished artifacts, by stage and age; damaged manifests are logged and left out.

        The files of one that lies on an object store may not be here.
        """
        found = []
        for name, fingerprint, read in self._manifests(stage):
            try:
                found.append(Artifact(self.path(name, fingerprint), read()))
            except ArtifactError as error:
                log.warning("%s", error)
        return sorted(found, key=lambda artifact: (artifact.stage, artifact.manifest.created))

    def unreadable(self) -> list[tuple[str, str, str]]:
        """Stage, fingerprint and problem of every artifact whose manifest is damaged, which :meth:`list` leaves out."""
        found = []
        for name, fingerprint, read in self._manifests(None):
            try:
                read()
            except ArtifactError as error:
                found.append((name, fingerprint, str(error)))
        return found

    def _manifests(self, stage: str | None) -> Iterator[tuple[str, str, Callable[[], Manifest]]]:
        """Stage, fingerprint and how to read the manifest of every artifact, here first."""
        here = {(folder.parent.name, folder.name): folder for folder in self._folders(stage)}
        for (name, fingerprint), folder in here.items():
            yield name, fingerprint, partial(read_manifest, folder)
        if self.mirror is not None:
            for name, fingerprint, data in self.mirror.artifacts.manifests(stage):
                if (name, fingerprint) not in here:
                    yield name, fingerprint, partial(self.mirror.artifacts.parse, data, name, fingerprint)

    def _folders(self, stage: str | None) -> Iterator[Path]:
        """Folders with a manifest. The stage comes from users, so it is compared and not put into a pattern."""
        for manifest in sorted((self.root / "artifacts").glob(f"*/*/{MANIFEST}")):
            if stage is None or manifest.parent.parent.name == stage:
                yield manifest.parent

    def named(self, name: str, stages: Sequence[str] = ()) -> Artifact:
        """What a channel's name, or else the start of a fingerprint, means; its files may not be here.

        Args:
            name: as users give it.
            stages: stages of what may be meant, where `name` does not say ``STAGE/START``; none: any.

        Raises:
            UnknownNameError: nothing has that name, or several artifacts begin with it.
            ArtifactError: the channel's artifact is gone or damaged.
        """
        channel = None if "/" in name or name.startswith(".") else self.channel(name)
        if channel is None:
            return self.resolve(name, stages)
        meant = str(channel.get("stage")), str(channel.get("fingerprint"))
        found = self.peek(*meant)
        if found is None:
            raise ArtifactError(
                f"the artifact {'/'.join(meant)} of the channel {name!r} is gone from {self.location}; run again"
            )
        return found

    def resolve(self, prefix: str, stages: Sequence[str] = ()) -> Artifact:
        """The one artifact (of `stages`, if any) whose fingerprint starts with `prefix` (or ``stage/prefix``).

        Raises:
            UnknownNameError: there is none, or more than one.
        """
        stage, _, start = prefix.rpartition("/")
        here = self.list(stage or None)
        found = [a for a in here if a.fingerprint.startswith(start) and (stage or not stages or a.stage in stages)]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(f"{a.stage}/{a.fingerprint[:12]}" for a in found[:5])
            what = f"{len(found)} artifacts under {self.location} begin with {prefix!r} ({names})"
        else:
            meant = f" of {' or '.join(stages)}" if stages and not stage else ""
            what = f"no artifact{meant} under {self.location} begins with {prefix!r}, and no channel has that name"
            if close := difflib.get_close_matches(prefix, self.channels(), n=1):
                what += f" (did you mean {close[0]!r}?)"
        raise UnknownNameError(f"{what}; see `paraclip artifacts ls`")

    def verify(self, artifact: Artifact) -> list[str]:
        """Compare every file with the manifest, contents included; returns the differences, one a line."""
        here: list[str] = []
        if self.mirror is None or artifact.path.is_dir():
            here = differences(artifact.path, artifact.manifest, contents=True)
        return here if self.mirror is None else here + self.mirror.artifacts.verify(artifact.manifest)

    def remove(self, artifact: Artifact) -> None:
        """Delete an artifact, at once for all who look.

        Raises:
            ArtifactError: the root is read-only.
        """
        if self.mirror is not None:
            self.mirror.remove(artifact.stage, artifact.fingerprint)
            if not artifact.path.is_dir():
                return
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
        """Stage, fingerprint and folder of every unfinished work; one that lies elsewhere has its folder to be."""
        found = {(p.parent.name, p.name) for p in (self.root / "work").glob("*/*") if p.is_dir()}
        if self.mirror is not None:
            found.update(self.mirror.works())
        return [(stage, name, self.work_path(stage, name)) for stage, name in sorted(found)]

    def mark_run(self, needs: Mapping[str, str]) -> AbstractContextManager[None]:
        """Meanwhile :meth:`holders` tells of a run that needs these artifacts, by stage and fingerprint."""
        return marked(self.root / "work", self.mirror and self.mirror.remote, needs)

    def holders(self) -> list[Holder]:
        """Every living process that makes an artifact of this store, or runs what needs some."""
        here = list(holders_below(self.root / "work"))
        return here if self.mirror is None else here + list(holders_at(self.mirror.remote))

    @contextmanager
    def channel_lock(self, name: str) -> Iterator[None]:
        """Hold a channel, so that what is read of it stays true until it is set."""
        between_machines = nullcontext() if self.mirror is None else self.mirror.channel_lock(name)
        with lock(self.root / "channels" / f"{_safe_name(name)}.lock"), between_machines:
            yield

    def set_channel(self, name: str, value: dict[str, Any]) -> None:
        """Point a channel, such as ``production``, at something."""
        path = self.root / "channels" / f"{_safe_name(name)}.json"
        if self.mirror is None:
            write_json(path, value)
        else:
            self.mirror.set_channel(name, value)

    def channel(self, name: str) -> dict[str, Any] | None:
        """What a channel points at, None if there is no such channel."""
        path = self.root / "channels" / f"{_safe_name(name)}.json"
        if self.mirror is not None:
            return self.mirror.channel(name)
        return as_channel(read_json(path), str(path)) if path.exists() else None

    def channels(self) -> dict[str, dict[str, Any]]:
        """Every channel by its name."""
        if self.mirror is not None:
            return self.mirror.channels()
        paths = sorted((self.root / "channels").glob("*.json"))
        return {path.stem: as_channel(read_json(path), str(path)) for path in paths}


def _safe_name(name: str) -> str:
    if not name or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise UnknownNameError(f"{name!r} cannot be a channel's name; use letters, digits and dashes")
    if len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
        raise UnknownNameError(f"{name[:40]!r}… is no name: a channel's has at most {LONGEST_NAME} bytes")
    return name


def _damaged(artifact: Artifact, problems: list[str]) -> str:
    return (
        f"artifact {artifact.stage}/{artifact.fingerprint} is damaged: {'; '.join(problems[:3])}. "
        f"Delete {artifact.path} to have it made again, or restore it from a copy"
    )
