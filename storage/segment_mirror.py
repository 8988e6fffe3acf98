"""The generation cache's parts on an object store: every machine has all of them, and none is ever changed.

A part's name says its turn and its contents, so bringing two machines together is a union of files. Where both
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
from storage.files import storage_error, sync_folder
from storage.object_store import RemoteFolder
from storage.parts import NAME, digest_of

__all__ = ["SegmentMirror"]

log = logging.getLogger(__name__)

BASE = "cache"
FOLDERS = ("segments", "verdicts")
PULL_SECONDS = 60.0
BATCH = 64


class SegmentMirror:
    """The folders of parts of a cache on an object store, and those here; a part's path is ``<folder>/<name>``."""

    def __init__(self, remote: RemoteFolder, cache_folder: Path) -> None:
        """`cache_folder` is made when the first part arrives."""
        self._remote, self._folder = remote, cache_folder
        self._pulled: float | None = None
        self._uploaded: set[str] = set()
        self._damaged: set[str] = set()

    def pull(self) -> None:
        """Download the parts that are not here, unless that was done within the last minute.

        Raises:
            ArtifactError: the store cannot be read; later than the first time that is only a warning.
        """
        now = time.monotonic()
        if self._pulled is not None and now - self._pulled < PULL_SECONDS:
            return
        try:
            self._download(sorted(self._list() - self._local() - self._damaged))
        except ArtifactError as error:
            if self._pulled is None:
                raise
            log.warning("the generations of other machines are not seen: %s", error)
        self._pulled = now

    def push(self, paths: Iterable[str]) -> None:
        """Upload parts that were just published; what fails is left to :meth:`push_rest`, for it is safe here."""
        try:
            self._upload(list(paths))
        except ArtifactError as error:
            log.warning("new generations are not uploaded yet: %s", error)

    def push_rest(self) -> None:
        """Upload every part that the store lacks.

        Raises:
            ArtifactError: the store cannot be used.
        """
        local = self._local()
        if local - self._uploaded:
            self._upload(sorted(local - self._list()))

    def _list(self) -> set[str]:
        self._uploaded = {f"{f}/{name}" for f in FOLDERS for name in self._remote.sizes(f"{BASE}/{f}") if is_part(name)}
        return self._uploaded

    def _local(self) -> set[str]:
        folders = [folder for folder in FOLDERS if (self._folder / folder).is_dir()]
        return {f"{f}/{path.name}" for f in folders for path in (self._folder / f).iterdir() if is_part(path.name)}

    def _upload(self, paths: list[str]) -> None:
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            self._remote.upload({f"{BASE}/{path}": self._folder / path for path in batch})
            self._uploaded.update(batch)

    def _download(self, paths: list[str]) -> None:
        if paths:
            log.info("downloading %s parts of the generation cache", len(paths))
        for start in range(0, len(paths), BATCH):
            # A killed download leaves a draft, which the cache sweeps.
            batch = {path: self._draft(path) for path in paths[start : start + BATCH]}
            try:
                self._remote.download({f"{BASE}/{path}": draft for path, draft in batch.items()})
                for path, draft in batch.items():
                    self._place(path, draft)
                for folder in {draft.parent for draft in batch.values()}:
                    sync_folder(folder)
            except OSError as error:
                raise storage_error(error, self._folder) from error
            finally:
                for draft in batch.values():
                    with suppress(OSError):
                        draft.unlink()

    def _draft(self, path: str) -> Path:
        return (self._folder / path).with_name(f".{uuid.uuid4().hex}.tmp")

    def _place(self, path: str, draft: Path) -> None:
        with draft.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        if digest != digest_of(Path(path).name):
            self._damaged.add(path)
            address = self._remote.name(f"{BASE}/{path}")
            log.warning("%s is damaged and left out; delete it, or upload it again from a machine that has it", address)
            return
        draft.replace(self._folder / path)


def is_part(name: str) -> bool:
    """Whether a file is a part."""
    return NAME.fullmatch(name) is not None
