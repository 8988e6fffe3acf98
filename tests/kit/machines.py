"""Machines that share a root on an object store, and the objects there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fsspec

from paraclip.storage import locks
from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.remote_store import RemoteStore
from paraclip_core.errors import ArtifactError

FP = "0123456789abcdef0123456789abcdef"
CONTENT = {"a.txt": b"alpha", "sub/b.bin": bytes(range(256))}
Machine = Callable[[str], RemoteStore]
AT_ONCE = locks.DEAD_SECONDS / 6
"""Most seconds, on however busy a machine, if nobody had to wait until a silent owner counted as dead."""


def make(store: ArtifactStore, fingerprint: str = FP, content: dict[str, bytes] = CONTENT) -> Artifact:
    artifact = store.find("ingest", fingerprint)
    if artifact is not None:
        return artifact
    with store.writing("ingest", fingerprint) as work:
        for name, data in content.items():
            (work.out / name).parent.mkdir(parents=True, exist_ok=True)
            (work.out / name).write_bytes(data)
        return store.commit(Draft("ingest", fingerprint, 1, {}, {}), {"rows": 3}, 1.0)


def contents(artifact: Artifact) -> dict[str, bytes]:
    return {str(p.relative_to(artifact.path)): p.read_bytes() for p in artifact.path.rglob("*") if p.is_file()}


def refuse(*_: Any) -> None:
    """Fail, as an operation on objects does while the network is down."""
    raise ArtifactError("the network is down")


class Objects:
    """The objects below a root, to look at and to damage."""

    def __init__(self, url: str) -> None:
        self.fs, self.base = fsspec.filesystem("memory"), url.removeprefix("memory:/")

    def names(self, below: str = "") -> list[str]:
        base = f"{self.base}/{below}".rstrip("/")
        return sorted(name.removeprefix(f"{self.base}/") for name in self.fs.find(base))

    def read(self, name: str) -> bytes:
        return self.fs.cat_file(f"{self.base}/{name}")

    def write(self, name: str, data: bytes) -> None:
        self.fs.pipe_file(f"{self.base}/{name}", data)

    def delete(self, name: str) -> None:
        self.fs.rm_file(f"{self.base}/{name}")
