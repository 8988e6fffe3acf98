"""The generation cache's segments on an object store: every machine has all of them, and none is ever changed.

A segment's name says its turn and its contents, so bringing two machines together is a union of files. Where both
answered the same request before they met, the answer of the lower name counts on both afterwards.
"""

from __future__ import annotations

import hashlib
import logging
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from paraclip_core.errors import ArtifactError
from storage.atomic import storage_error, sync_folder
from storage.filesystems import RemoteFolder
from storage.segments import NAME, digest_of

__all__ = ["SegmentMirror"]

log = logging.getLogger(__name__)

BASE = "cache/segments"
PULL_SECONDS = 60.0
BATCH = 64


class SegmentMirror:
    """The folder ``cache/segments`` on an object store, and the one here."""

    def __init__(self, remote: RemoteFolder, folder: Path) -> None:
        """`folder` is made when the first segment arrives."""
        self._remote, self._folder = remote, folder
        self._pulled: float | None = None
        self._there: set[str] = set()
        self._damaged: set[str] = set()

    def pull(self) -> None:
        """Download the segments that are not here, unless that was done within the last minute.

        Raises:
            ArtifactError: the store cannot be read; later than the first time that is only a warning.
        """
        now = time.monotonic()
        if self._pulled is not None and now - self._pulled < PULL_SECONDS:
            return
        try:
            self._download(sorted(self._list() - self._here() - self._damaged))
        except ArtifactError as error:
            if self._pulled is None:
                raise
            log.warning("the generations of other machines are not seen: %s", error)
        self._pulled = now

    def push(self, names: Iterable[str]) -> None:
        """Upload segments that were just published; what fails is left to :meth:`push_rest`, for it is safe here."""
        try:
            self._upload(list(names))
        except ArtifactError as error:
            log.warning("new generations are not uploaded yet: %s", error)

    def push_rest(self) -> None:
        """Upload every segment that the store lacks.

        Raises:
            ArtifactError: the store cannot be used.
        """
        here = self._here()
        if here - self._there:
            self._upload(sorted(here - self._list()))

    def _list(self) -> set[str]:
        self._there = {name for name in self._remote.sizes(BASE) if NAME.fullmatch(name)}
        return self._there

    def _here(self) -> set[str]:
        if not self._folder.is_dir():
            return set()
        return {path.name for path in self._folder.iterdir() if NAME.fullmatch(path.name)}

    def _upload(self, names: list[str]) -> None:
        for start in range(0, len(names), BATCH):
            batch = names[start : start + BATCH]
            self._remote.upload({f"{BASE}/{name}": self._folder / name for name in batch})
            self._there.update(batch)

    def _download(self, names: list[str]) -> None:
        if names:
            log.info("downloading %s segments of generations", len(names))
        for start in range(0, len(names), BATCH):
            # A killed download leaves a draft, which the cache sweeps.
            batch = {name: self._folder / f".{uuid.uuid4().hex}.tmp" for name in names[start : start + BATCH]}
            try:
                self._remote.download({f"{BASE}/{name}": draft for name, draft in batch.items()})
                for name, draft in batch.items():
                    self._place(name, draft)
                sync_folder(self._folder)
            except OSError as error:
                raise storage_error(error, self._folder) from error
            finally:
                for draft in batch.values():
                    with suppress(OSError):
                        draft.unlink()

    def _place(self, name: str, draft: Path) -> None:
        with draft.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        if digest != digest_of(name):
            self._damaged.add(name)
            address = self._remote.name(f"{BASE}/{name}")
            log.warning("%s is damaged and left out; delete it, or upload it again from a machine that has it", address)
            return
        draft.replace(self._folder / name)
