"""Finished artifacts on an object store: listed, compared with their manifests, downloaded whole or not at all."""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from paraclip_core.errors import ArtifactError
from storage.files import file_sha256, storage_error, sync_folder, write_atomic
from storage.locks import lock
from storage.manifests import MANIFEST, Manifest, parse_manifest
from storage.object_store import RemoteFolder

__all__ = ["RemoteArtifacts"]

log = logging.getLogger(__name__)

STALE_SECONDS = 24 * 3600


class RemoteArtifacts:
    """The objects below ``artifacts/``. As in a folder, an artifact without a manifest does not exist."""

    def __init__(self, remote: RemoteFolder, desks: Path) -> None:
        """`desks` is where temporary folders go, on the disk that artifacts are downloaded to."""
        self.remote, self._desks = remote, desks

    def address(self, stage: str, fingerprint: str) -> str:
        """Where an artifact lies, for messages."""
        return self.remote.name(_artifact(stage, fingerprint))

    def manifest(self, stage: str, fingerprint: str) -> Manifest | None:
        """The manifest of an artifact of which everything is there, by names and sizes; None where there is none.

        Raises:
            ArtifactError: an object is missing or of another size; the text names it.
        """
        data = self.raw_manifest(stage, fingerprint)
        if data is None:
            return None
        manifest = self.parse(data, stage, fingerprint)
        self._insist(manifest, self._differences(manifest))
        return manifest

    def manifests(self, stage: str | None) -> Iterator[tuple[str, str, bytes]]:
        """Stage, fingerprint and manifest, as it is, of every artifact."""
        names = {}
        for folder in self.remote.children("artifacts"):
            if stage in (None, folder):
                for print_ in self.remote.children(f"artifacts/{folder}"):
                    names[f"{_artifact(folder, print_)}/{MANIFEST}"] = (folder, print_)
        for path, data in sorted(self.remote.read_all(names).items()):
            yield *names[path], data

    def parse(self, data: bytes, stage: str, fingerprint: str) -> Manifest:
        """Read a manifest that :meth:`manifests` gave.

        Raises:
            ArtifactError: it is damaged.
        """
        return parse_manifest(data, f"{self.address(stage, fingerprint)}/{MANIFEST}", stage, fingerprint)

    def fetch(self, stage: str, fingerprint: str, target: Path) -> bool:
        """Download an artifact to `target`, whole or not at all; False where there is none.

        Raises:
            ArtifactError: it is damaged, or cannot be downloaded.
        """
        manifest = self.manifest(stage, fingerprint)
        if manifest is None:
            return False
        self._desks.mkdir(parents=True, exist_ok=True)
        with lock(self._desks / f"{stage}-{fingerprint}.lock"):
            if (target / MANIFEST).exists():
                return True
            log.info("downloading %s (%s bytes)", self.address(stage, fingerprint), manifest.size())
            self._sweep()
            desk = self._desks / uuid.uuid4().hex
            try:
                self._download(manifest, desk)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(target, ignore_errors=True)
                desk.rename(target)
                sync_folder(target.parent)
            except OSError as error:
                raise storage_error(error, target) from error
            finally:
                shutil.rmtree(desk, ignore_errors=True)
        return True

    def upload(self, manifest: Manifest, folder: Path, pushed: Mapping[str, str]) -> None:
        """Upload an artifact, its manifest last.

        Args:
            manifest: what it holds.
            folder: where it is.
            pushed: contents that are at the store already: the path of an object by its SHA-256.

        Raises:
            ArtifactError: the store cannot be written, or does not hold what was sent.
        """
        base = _artifact(manifest.stage, manifest.fingerprint)
        there = {n: pushed[entry.sha256] for n, entry in manifest.files.items() if entry.sha256 in pushed}
        try:
            self.remote.copy({f"{base}/{name}": path for name, path in there.items()})
        except ArtifactError as error:
            # A push that is still under way may delete what no longer counts as unfinished work.
            log.info("what was pushed before is sent again: %s", error)
            there = {}
        self.remote.upload({f"{base}/{name}": folder / name for name in manifest.files if name not in there})
        self._insist(manifest, self._differences(manifest))
        self.remote.write(f"{base}/{MANIFEST}", (folder / MANIFEST).read_bytes())

    def raw_manifest(self, stage: str, fingerprint: str) -> bytes | None:
        """A manifest's bytes, None where there is none."""
        return self.remote.read(f"{_artifact(stage, fingerprint)}/{MANIFEST}")

    def remove(self, stage: str, fingerprint: str) -> None:
        """Delete an artifact, its manifest first, so that it is gone at once for all who look."""
        base = _artifact(stage, fingerprint)
        self.remote.delete([f"{base}/{MANIFEST}"])
        self.remote.delete(f"{base}/{name}" for name in self.remote.sizes(base))

    def verify(self, manifest: Manifest) -> list[str]:
        """Compare every object with the manifest, contents included; nothing where the artifact is not there."""
        base = _artifact(manifest.stage, manifest.fingerprint)
        if self.raw_manifest(manifest.stage, manifest.fingerprint) is None:
            return []
        problems = self._differences(manifest)
        if problems:
            return problems
        changed = (n for n, entry in manifest.files.items() if self.remote.sha256(f"{base}/{n}") != entry.sha256)
        return [f"{self.remote.name(f'{base}/{name}')} was changed (its SHA-256 differs)" for name in changed]

    def _differences(self, manifest: Manifest) -> list[str]:
        base = _artifact(manifest.stage, manifest.fingerprint)
        there = self.remote.sizes(base)
        problems = []
        for name, entry in manifest.files.items():
            address, size = self.remote.name(f"{base}/{name}"), there.get(name)
            if size is None:
                problems.append(f"{address} is missing")
            elif size != entry.size:
                problems.append(f"{address} has {size} bytes instead of {entry.size}")
        return problems

    def _insist(self, manifest: Manifest, problems: Iterable[str]) -> None:
        found = list(problems)
        if found:
            address = self.address(manifest.stage, manifest.fingerprint)
            raise ArtifactError(
                f"artifact {manifest.stage}/{manifest.fingerprint} is damaged: {'; '.join(found[:3])}. Delete all that "
                f"lies below {address} to have it made again, or restore it from a machine that has a copy"
            )

    def _download(self, manifest: Manifest, desk: Path) -> None:
        base = _artifact(manifest.stage, manifest.fingerprint)
        self.remote.download({f"{base}/{name}": desk / name for name in manifest.files})
        changed = (name for name, entry in manifest.files.items() if file_sha256(desk / name) != entry.sha256)
        self._insist(
            manifest, (f"{self.remote.name(f'{base}/{name}')} was changed (its SHA-256 differs)" for name in changed)
        )
        data = self.raw_manifest(manifest.stage, manifest.fingerprint)
        if data is None:
            raise ArtifactError(f"{self.remote.name(base)} was deleted while it was downloaded; run again")
        # Last, because files younger than their manifest count as edited.
        write_atomic(desk / MANIFEST, lambda file: file.write(data))

    def _sweep(self) -> None:
        """Delete what killed downloads left more than a day ago."""
        for desk in self._desks.iterdir():
            # One whose download has just ended is gone.
            with suppress(FileNotFoundError):
                if desk.is_dir() and time.time() - desk.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(desk, ignore_errors=True)


def _artifact(stage: str, fingerprint: str) -> str:
    return f"artifacts/{stage}/{fingerprint}"
