"""An artifact root on an object store: the same folders as objects, and a working folder on this machine.

Stages work on local files. What is finished is uploaded, the manifest last, so that an artifact without one does not
exist there either; what is asked for is downloaded, compared with its manifest and renamed into place.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paraclip_core.errors import ArtifactError
from storage import remote_lock
from storage.channels import as_channel
from storage.files import json_bytes, parse_json, write_atomic
from storage.locks import lock
from storage.manifests import MANIFEST, Manifest
from storage.object_store import RemoteFolder
from storage.remote_artifacts import RemoteArtifacts
from storage.unfinished import SNAPSHOT, UnfinishedWork

__all__ = ["Mirror"]

log = logging.getLogger(__name__)


class Mirror:
    """What an :class:`storage.artifacts.ArtifactStore` asks of the object store behind its folder."""

    def __init__(self, remote: RemoteFolder, root: Path) -> None:
        """`root` is the working folder here."""
        self.remote, self._root = remote, root
        self._desks = root / "incoming"
        self.artifacts = RemoteArtifacts(remote, self._desks)

    @property
    def patience(self) -> float:
        """Seconds after which it is known whether the owner of a lock lives."""
        return remote_lock.DEAD_SECONDS + remote_lock.BEAT_SECONDS

    def promise(self, stage: str, fingerprint: str) -> None:
        """Note that an artifact is about to be finished here and has to be uploaded."""
        write_atomic(self._promise(stage, fingerprint), lambda file: None)

    def deliver(self, manifest: Manifest, folder: Path) -> bool:
        """Upload an artifact if that was promised and not yet done. False where another machine had been first.

        In that case its artifact counts, and takes the place of the one in `folder`.

        Raises:
            ArtifactError: the store cannot be written; the next who looks for the artifact will try again.
        """
        stage, fingerprint = manifest.stage, manifest.fingerprint
        promise = self._promise(stage, fingerprint)
        if not promise.exists():
            return True
        with lock(promise.with_name(f"{fingerprint}.lock")):
            if not promise.exists():
                return True
            ours, theirs = (folder / MANIFEST).read_bytes(), self.artifacts.raw_manifest(stage, fingerprint)
            first = theirs in (None, ours)
            if theirs is None:
                self.artifacts.upload(manifest, folder, self._work(stage, fingerprint, folder).objects())
            elif not first:
                log.warning("another machine finished %s/%s first; what it made is used", stage, fingerprint)
                self._replace(stage, fingerprint, folder)
            promise.unlink()
        return first

    def remove(self, stage: str, fingerprint: str) -> None:
        """Delete an artifact at the store; one that was promised is promised no more."""
        self.artifacts.remove(stage, fingerprint)
        self._promise(stage, fingerprint).unlink(missing_ok=True)

    # Unfinished work

    def works(self) -> list[tuple[str, str]]:
        """Stage and fingerprint of all unfinished work, and of what a push or a removal that was killed left of it."""
        found = (path.split("/") for path in self.remote.sizes("work"))
        return sorted({(parts[0], parts[1]) for parts in found if len(parts) > 2})

    def has_work(self, stage: str, fingerprint: str) -> bool:
        """Whether unfinished work of this fingerprint was pushed."""
        return self.remote.read(f"{_work(stage, fingerprint)}/{SNAPSHOT}") is not None

    @contextmanager
    def working(
        self,
        stage: str,
        fingerprint: str,
        folder: Path,
        poll: Callable[[], None] | None = None,
        wait_seconds: float | None = None,
        pull: bool = True,
        says: Mapping[str, Any] | None = None,
    ) -> Iterator[UnfinishedWork]:
        """Hold the fingerprint's lock between machines, with the unfinished work of the last one in `folder`.

        Without `pull`, for deleting it, nothing is downloaded.
        What is left unfinished is pushed at the end, what is finished is deleted at the store.
        """
        name = f"locks/{stage}/{fingerprint}"
        with remote_lock.remote_lock(self.remote, name, wait_seconds, poll, says) as held:
            work = self._work(stage, fingerprint, folder, held)
            if pull:
                work.pull()
            try:
                yield work
            except BaseException:
                work.finish(push=True)
                raise
            work.finish(push=False)

    # Channels

    @contextmanager
    def channel_lock(self, name: str) -> Iterator[None]:
        """Hold a channel between machines."""
        with remote_lock.remote_lock(self.remote, f"locks/channels/{name}"):
            yield

    def set_channel(self, name: str, value: dict[str, Any]) -> None:
        """Point a channel at something; the object is the truth."""
        self.remote.write(f"channels/{name}.json", json_bytes(value))

    def channel(self, name: str) -> dict[str, Any] | None:
        """What a channel points at."""
        path = f"channels/{name}.json"
        data = self.remote.read(path)
        try:
            return None if data is None else as_channel(parse_json(data), self.remote.name(path))
        except ValueError as error:
            raise ArtifactError(
                f"{self.remote.name(path)} is not valid JSON ({error}); restore or delete it"
            ) from error

    def channels(self) -> dict[str, dict[str, Any]]:
        """Every channel by its name."""
        names = [name.removesuffix(".json") for name in self.remote.children("channels") if name.endswith(".json")]
        told = {name: self.channel(name) for name in names}
        return {name: value for name, value in told.items() if value is not None}

    def _work(
        self, stage: str, fingerprint: str, folder: Path, held: Callable[[], bool] | None = None
    ) -> UnfinishedWork:
        return UnfinishedWork(self.remote, _work(stage, fingerprint), folder, self._desks, held)

    def _promise(self, stage: str, fingerprint: str) -> Path:
        return self._root / "outbox" / stage / fingerprint

    def _replace(self, stage: str, fingerprint: str, folder: Path) -> None:
        aside = self._desks / uuid.uuid4().hex
        self._desks.mkdir(parents=True, exist_ok=True)
        folder.rename(aside)
        # It keeps its old time, by which the next download would take it for a left-over.
        os.utime(aside)
        try:
            self.artifacts.fetch(stage, fingerprint, folder)
        except BaseException:
            aside.rename(folder)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _work(stage: str, fingerprint: str) -> str:
    return f"work/{stage}/{fingerprint}"
