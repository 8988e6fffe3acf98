"""Which artifacts nobody needs any more."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from storage.artifacts import Artifact, ArtifactStore
from storage.atomic import storage_error
from storage.locks import lock

__all__ = ["Rubbish", "collect", "remove"]


@dataclass(frozen=True)
class Rubbish:
    """A folder that may go."""

    stage: str
    fingerprint: str
    path: Path
    size: int
    """Bytes."""
    artifact: Artifact | None
    """None for unfinished work."""
    store: ArtifactStore

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"stage": self.stage, "fingerprint": self.fingerprint, "path": str(self.path), "bytes": self.size}


def collect(store: ArtifactStore, keep_days: float = 0.0, unfinished: bool = False) -> list[Rubbish]:
    """Artifacts that no channel's run consists of and no kept artifact was made from.

    Args:
        store: the store.
        keep_days: what is younger stays, with everything that it was made from.
        unfinished: unfinished work that nobody is writing counts as well.
    """
    artifacts = {(artifact.stage, artifact.fingerprint): artifact for artifact in store.list()}
    young = datetime.now(UTC) - timedelta(days=keep_days)
    waiting = [key for value in store.channels().values() for key in _of_channel(value)]
    waiting += [key for key, a in artifacts.items() if datetime.fromisoformat(a.manifest.created) > young]
    kept: set[tuple[str, str]] = set()
    while waiting:
        key = waiting.pop()
        if key not in kept and key in artifacts:
            kept.add(key)
            waiting += list(artifacts[key].manifest.inputs.items())
    found = [
        Rubbish(a.stage, a.fingerprint, a.path, a.manifest.size(), a, store)
        for key, a in artifacts.items()
        if key not in kept
    ]
    if unfinished:
        found += [Rubbish(stage, name, path, _size(path), None, store) for stage, name, path in store.unfinished()]
    return found


def remove(rubbish: Sequence[Rubbish]) -> None:
    """Delete what was collected; unfinished work only while holding its lock.

    Raises:
        LockedError: unfinished work is being written by a living process.
        ArtifactError: a folder cannot be deleted.
    """
    for item in rubbish:
        try:
            if item.artifact is not None:
                item.store.remove(item.artifact)
                continue
            with lock(item.path.with_name(f"{item.fingerprint}.lock"), wait_seconds=0):
                shutil.rmtree(item.path)
        except OSError as error:
            raise storage_error(error, item.path) from error


def _of_channel(value: dict[str, Any]) -> list[tuple[str, str]]:
    return [*value.get("stages", {}).items(), (value.get("stage", ""), value.get("fingerprint", ""))]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
