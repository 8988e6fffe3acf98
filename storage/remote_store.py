"""The artifact store of a root on an object store, which other machines share.

Such a root has the same folders as objects, and a working folder on this machine. Stages work on local files. What is
finished is uploaded, the manifest last, so that an artifact without one does not exist there either; a download is
compared with its manifest and renamed into place. Of unfinished work, only a training stage's checkpoints are shared.
"""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from paraclip.storage import locks
from paraclip.storage.artifacts import (
    MANIFEST,
    Artifact,
    ArtifactStore,
    Draft,
    Manifest,
    or_error,
    parse_manifest,
    read_manifest,
    safe_channel,
)
from paraclip.storage.files import file_sha256, json_bytes, sync_folder, write_atomic, write_json
from paraclip.storage.locks import Lease, lease, lock
from paraclip.storage.object_store import RemoteFolder
from paraclip_core.errors import ArtifactError, LockedError

log = logging.getLogger(__name__)

CHECKPOINTS, LOG = "scratch/checkpoints", "out/training_log.jsonl"
PUSH_SECONDS = 300.0


class RemoteStore(ArtifactStore):
    """An artifact store whose root other machines share through an object store."""

    def __init__(self, root: Path | str, remote: RemoteFolder) -> None:
        """`root` is the working folder on this machine."""
        super().__init__(root)
        self._remote, self._incoming = remote, self.root / "incoming"

    @property
    def remote(self) -> RemoteFolder:
        """The object store that the root is shared through."""
        return self._remote

    @property
    def location(self) -> str:
        """The URL of the root."""
        return self.remote.url

    # Looking

    def find(self, stage: str, fingerprint: str) -> Artifact | None:
        """As in a folder; what is not here is downloaded, and what an interrupted commit left is uploaded."""
        artifact = super().find(stage, fingerprint)
        if artifact is None:
            return super().find(stage, fingerprint) if self._fetch(stage, fingerprint) else None
        return artifact if self._upload(artifact) else super().find(stage, fingerprint)

    def peek(self, stage: str, fingerprint: str) -> Artifact | None:
        """As in a folder; what is not here is looked up in the store by names and sizes."""
        if self._finished(stage, fingerprint):
            return self.find(stage, fingerprint)
        manifest = self._manifest(stage, fingerprint)
        return None if manifest is None else Artifact(self.path(stage, fingerprint), manifest)

    def uri(self, artifact: Artifact) -> str:
        """Its folder, or its address where it has not been downloaded."""
        return super().uri(artifact) if artifact.path.is_dir() else self.remote.name(_base(artifact))

    def verify(self, artifact: Artifact) -> list[str]:
        """Compare every file here and every object with the manifest."""
        problems = super().verify(artifact) if artifact.path.is_dir() else []
        manifest, base = artifact.manifest, _base(artifact)
        if self.remote.read(f"{base}/{MANIFEST}") is None:
            return problems
        if differing := self._differences(manifest):
            return problems + differing
        hashes = ((name, entry.sha256, self.remote.sha256(f"{base}/{name}")) for name, entry in manifest.files.items())
        return problems + [self._was_changed(base, name) for name, expected, actual in hashes if actual != expected]

    def _manifests(self, stage: str | None) -> Iterator[tuple[str, str, Manifest | ArtifactError]]:
        local = {(name, fingerprint): manifest for name, fingerprint, manifest in super()._manifests(stage)}
        yield from ((*names, manifest) for names, manifest in local.items())
        places = (path.split("/") for path in self.remote.sizes("artifacts"))
        keys = {
            f"artifacts/{'/'.join(place)}": (place[0], place[1])
            for place in places
            if len(place) == 3 and place[2] == MANIFEST and stage in (None, place[0])
        }
        for path, data in sorted(self.remote.read_all(keys).items()):
            if keys[path] not in local:
                yield *keys[path], or_error(partial(parse_manifest, data, self.remote.name(path), *keys[path]))

    def _manifest(self, stage: str, fingerprint: str) -> Manifest | None:
        """The manifest in the store of an artifact that is complete there, by names and sizes."""
        path = f"artifacts/{stage}/{fingerprint}/{MANIFEST}"
        data = self.remote.read(path)
        if data is None:
            return None
        manifest = parse_manifest(data, self.remote.name(path), stage, fingerprint)
        self._expect_none(self._differences(manifest), manifest)
        return manifest

    def _differences(self, manifest: Manifest) -> list[str]:
        base = _base(manifest)
        sizes, problems = self.remote.sizes(base), []
        for name, entry in manifest.files.items():
            address, size = self.remote.name(f"{base}/{name}"), sizes.get(name)
            if size is None:
                problems.append(f"{address} is missing")
            elif size != entry.size:
                problems.append(f"{address} has {size} bytes instead of {entry.size}")
        return problems

    def _was_changed(self, base: str, name: str) -> str:
        return f"{self.remote.name(f'{base}/{name}')} was changed (its SHA-256 differs)"

    def _expect_none(self, problems: Iterable[str], manifest: Manifest) -> None:
        if texts := list(problems):
            raise ArtifactError(
                f"artifact {manifest.stage}/{manifest.fingerprint} is damaged: {'; '.join(texts[:3])}. Delete all that "
                f"lies below {self.remote.name(_base(manifest))} to have it made again, or restore it from a machine "
                "that has a copy"
            )

    # Downloading

    def _fetch(self, stage: str, fingerprint: str) -> bool:
        """Download an artifact, whole or not at all; False if there is none."""
        manifest = self._manifest(stage, fingerprint)
        if manifest is None:
            return False
        target, draft = self.path(stage, fingerprint), self._incoming / f"{stage}-{fingerprint}"
        with lock(draft.with_suffix(".lock")):
            if (target / MANIFEST).exists():
                return True
            log.info("downloading %s (%s bytes)", self.remote.name(_base(manifest)), manifest.size())
            try:
                shutil.rmtree(draft, ignore_errors=True)  # of a download that was killed
                self._download_to(draft, manifest)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(target, ignore_errors=True)
                draft.rename(target)
                sync_folder(target.parent)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        return True

    def _download_to(self, draft: Path, manifest: Manifest) -> None:
        base = _base(manifest)
        self.remote.download({f"{base}/{name}": draft / name for name in manifest.files})
        changed = (name for name, entry in manifest.files.items() if file_sha256(draft / name) != entry.sha256)
        self._expect_none((self._was_changed(base, name) for name in changed), manifest)
        # Last, because files younger than their manifest count as edited.
        write_json(draft / MANIFEST, asdict(manifest))

    # Uploading

    def commit(self, draft: Draft, metrics: dict[str, Any], wall_seconds: float) -> Artifact:
        """Commit here and upload; if another machine was first, its artifact counts and is returned."""
        # First, so that the process that finds the artifact here after a kill uploads it.
        write_atomic(self._pending(draft.stage, draft.fingerprint), lambda file: None)
        artifact = super().commit(draft, metrics, wall_seconds)
        return artifact if self._upload(artifact) else Artifact(artifact.path, read_manifest(artifact.path))

    def _upload(self, artifact: Artifact) -> bool:
        """Upload an artifact if that is pending. False if another machine was first: its artifact counts."""
        stage, fingerprint = artifact.stage, artifact.fingerprint
        pending = self._pending(stage, fingerprint)
        if not pending.exists():
            return True
        with lock(pending.with_name(f"{fingerprint}.lock")):
            if not pending.exists():
                return True
            ours = (artifact.path / MANIFEST).read_bytes()
            theirs = self.remote.read(f"{_base(artifact)}/{MANIFEST}")
            if theirs is None:
                self._send(artifact)
            pending.unlink()
            if theirs not in (None, ours):
                log.warning("another machine finished %s/%s first; what it made is used", stage, fingerprint)
                super().remove(artifact)
                self._fetch(stage, fingerprint)
        return theirs in (None, ours)

    def _send(self, artifact: Artifact) -> None:
        """Upload an artifact, its manifest last."""
        base = _base(artifact)
        self.remote.upload({f"{base}/{name}": artifact.path / name for name in artifact.manifest.files})
        self._expect_none(self._differences(artifact.manifest), artifact.manifest)
        self.remote.write(f"{base}/{MANIFEST}", (artifact.path / MANIFEST).read_bytes())

    def _pending(self, stage: str, fingerprint: str) -> Path:
        """A file that exists while an artifact, finished here or about to be, has to be uploaded."""
        return self.root / "outbox" / stage / fingerprint

    def remove(self, artifact: Artifact) -> None:
        """Delete an artifact in the store, its manifest first, and here."""
        base = _base(artifact)
        self.remote.delete([f"{base}/{MANIFEST}"])
        self.remote.delete(f"{base}/{name}" for name in self.remote.sizes(base))
        self._pending(artifact.stage, artifact.fingerprint).unlink(missing_ok=True)
        if artifact.path.is_dir():
            super().remove(artifact)

    # Unfinished work

    def resumable(self, stage: str, fingerprint: str) -> bool:
        """Whether unfinished work of this fingerprint is here, or checkpoints were pushed."""
        return super().resumable(stage, fingerprint) or bool(self.remote.sizes(f"work/{stage}/{fingerprint}"))

    def unfinished(self) -> list[tuple[str, str, Path]]:
        """All unfinished work, including work of which only checkpoints in the store are left."""
        objects = (path.split("/") for path in self.remote.sizes("work"))
        remote_work = {(names[0], names[1], self.work_path(names[0], names[1])) for names in objects if len(names) > 2}
        return sorted({*super().unfinished(), *remote_work})

    @contextmanager
    def _shared_work(
        self, stage: str, fingerprint: str, poll: Callable[[], None] | None
    ) -> Iterator[Callable[[], None]]:
        with lease(self.remote, f"locks/{stage}/{fingerprint}", poll=poll) as leased:
            checkpoints = self._checkpoints(stage, fingerprint, leased)
            checkpoints.fetch(self._incoming)
            try:
                yield checkpoints.push_if_due
            except BaseException:
                checkpoints.push()
                raise
            if self._finished(stage, fingerprint):
                try:
                    checkpoints.delete()
                except ArtifactError as error:
                    # The artifact is finished all the same.
                    log.warning("left-over checkpoints (`paraclip artifacts gc`): %s", error)

    def _delete_shared_work(self, stage: str, fingerprint: str) -> None:
        # A lost machine's lease is found dead only after a while, and its work must not stay for ever.
        seconds = locks.DEAD_SECONDS + locks.HEARTBEAT_SECONDS
        with lease(self.remote, f"locks/{stage}/{fingerprint}", seconds) as leased:
            self._checkpoints(stage, fingerprint, leased).delete()

    def _checkpoints(self, stage: str, fingerprint: str, leased: Lease) -> RemoteCheckpoints:
        folder = self.work_path(stage, fingerprint)
        return RemoteCheckpoints(self.remote, f"work/{stage}/{fingerprint}", folder, leased)

    # Channels

    @contextmanager
    def channel_lock(self, name: str) -> Iterator[None]:
        """Hold a channel on this machine and between machines."""
        with super().channel_lock(name), lease(self.remote, f"locks/channels/{name}"):
            yield

    def set_channel(self, name: str, value: dict[str, Any]) -> None:
        """Point a channel at something; the object is the truth."""
        self.remote.write(f"channels/{safe_channel(name)}.json", json_bytes(value))

    def _read_channel(self, name: str) -> tuple[bytes | None, str]:
        path = f"channels/{name}.json"
        return self.remote.read(path), self.remote.name(path)

    def _channel_names(self) -> list[str]:
        return [name.removesuffix(".json") for name in self.remote.sizes("channels") if name.endswith(".json")]


def _base(artifact: Artifact | Manifest) -> str:
    """The folder of an artifact's objects."""
    return f"artifacts/{artifact.stage}/{artifact.fingerprint}"


class RemoteCheckpoints:
    """The checkpoints of one fingerprint, here and in the object store. Use it while holding lock and lease.

    Each file is pushed separately, under its own name: a checkpoint never changes and carries a digest, and its log may
    be longer than it says. If a push was cut off, the trainer resumes from the previous checkpoint, which is deleted
    last.
    """

    def __init__(self, remote: RemoteFolder, base: str, folder: Path, lease: Lease) -> None:
        """`base` is the folder of the unfinished work in the store, `folder` the one here."""
        self._remote, self._base, self._folder, self._lease = remote, base, folder, lease
        self._last = time.monotonic()
        self._sent: set[str] = set()

    def fetch(self, incoming: Path) -> None:
        """Download the checkpoints, by way of the folder `incoming`, if the newest one in the store is not here."""
        stored = [
            name for name in self._remote.sizes(self._base) if name == LOG or name.rpartition("/")[0] == CHECKPOINTS
        ]
        # By their names, which number the steps; the log's comes before them.
        if max(stored, default=LOG) <= max(self._names(), default=LOG):
            return
        draft = incoming / uuid.uuid4().hex
        try:
            self._remote.download({self._object(name): draft / name for name in stored})
            # The log first: an older checkpoint works with a longer log; without one, all is fetched again.
            for name in (LOG, CHECKPOINTS):
                target = self._folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.is_dir():
                    shutil.rmtree(target)
                if (draft / name).exists():
                    (draft / name).replace(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self._sent.update(self._names())
        log.info("resuming from the checkpoints that were pushed to %s", self._remote.name(self._base))

    def push_if_due(self) -> None:
        """Push if it is time; call it as often as you like."""
        if self._lease.lost:
            raise LockedError(f"another machine has taken over {self._base}; run again to get its result")
        if time.monotonic() - self._last >= PUSH_SECONDS:
            self.push()
            self._last = time.monotonic()

    def push(self) -> None:
        """Upload what is new; what fails is left to the next time."""
        try:
            names = self._names()
            if not names or not self._lease.holds():
                return
            # The log was read after the checkpoints were seen, so it has the lines that they count.
            self._remote.write(self._object(LOG), (self._folder / LOG).read_bytes())
            for name in set(names) - self._sent:
                self._remote.upload({self._object(name): self._folder / name})
                self._sent.add(name)
            wanted = {LOG, *names}
            self._remote.delete(self._object(name) for name in self._remote.sizes(self._base) if name not in wanted)
        except (ArtifactError, OSError) as error:
            log.warning("cannot push the checkpoints: %s", error)

    def delete(self) -> None:
        """Delete them in the store, with everything there for this fingerprint."""
        self._remote.delete(self._object(name) for name in self._remote.sizes(self._base))

    def _names(self) -> list[str]:
        return sorted(f"{CHECKPOINTS}/{path.name}" for path in (self._folder / CHECKPOINTS).glob("*.safetensors"))

    def _object(self, name: str) -> str:
        return f"{self._base}/{name}"
