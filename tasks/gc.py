"""Garbage collection: finds artifacts that no channel needs any more."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from paraclip.storage.artifacts import Artifact, ArtifactStore
from paraclip.tasks.channels import models
from paraclip_core.errors import LockedError

KEPT_MODELS = 3
"""Models that `paraclip artifacts gc` keeps for each channel, in addition to the current one."""

Key = tuple[str, str]
"""Stage and fingerprint."""


@dataclass(frozen=True)
class Garbage:
    """A folder that can be deleted."""

    stage: str
    fingerprint: str
    path: Path
    size: int
    """Bytes."""
    artifact: Artifact | None
    """None for unfinished work."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"stage": self.stage, "fingerprint": self.fingerprint, "path": str(self.path), "bytes": self.size}


@dataclass(frozen=True)
class Collected:
    """What can be deleted, and how much is kept only because of its age."""

    garbage: list[Garbage]
    young: int
    """Artifacts kept only because of their age, including those that they were made from."""


def collect(
    store: ArtifactStore, keep_days: float = 0.0, unfinished: bool = False, keep_models: int = KEPT_MODELS
) -> Collected:
    """Find artifacts that belong to no run of a channel's latest models, and from which no kept artifact was made.

    Artifacts younger than `keep_days` are kept with everything that they were made from. With `unfinished`, unfinished
    work that nobody has touched for `keep_days` is collected, too.
    """
    artifacts = {(artifact.stage, artifact.fingerprint): artifact for artifact in store.list()}
    young = datetime.now(UTC) - timedelta(days=keep_days)
    needed = _of_channels(store, keep_models)
    recent = [key for key, a in artifacts.items() if datetime.fromisoformat(a.manifest.created) > young]
    staying = _with_origins([*needed, *recent], artifacts)
    garbage = [
        Garbage(*key, artifact.path, artifact.manifest.size(), artifact)
        for key, artifact in artifacts.items()
        if key not in staying
    ]
    garbage += [
        Garbage(stage, name, path, sum(file.st_size for file in _files(path)), None)
        for stage, name, path in store.unfinished()
        # A commit that was killed at its very end leaves work that nothing resumes.
        if (unfinished and _touched(path) <= young) or (stage, name) in artifacts
    ]
    return Collected(garbage, len(staying) - len(_with_origins(needed, artifacts)))


def remove(garbage: Iterable[Garbage], store: ArtifactStore) -> list[Garbage]:
    """Delete what was collected, except unfinished work that a stage holds; returns what was deleted."""
    deleted = []
    for item in garbage:
        with suppress(LockedError):
            if item.artifact is not None:
                store.remove(item.artifact)
            else:
                store.discard(item.stage, item.fingerprint)
            deleted.append(item)
    return deleted


def _with_origins(start: Iterable[Key], artifacts: Mapping[Key, Artifact]) -> set[Key]:
    """The artifacts with these keys, and everything that they were made from."""
    keys, reached = list(start), set[Key]()
    while keys:
        key = keys.pop()
        if key not in reached and key in artifacts:
            reached.add(key)
            keys += artifacts[key].manifest.inputs.items()
    return reached


def _of_channels(store: ArtifactStore, keep_models: int) -> list[Key]:
    keys: list[Key] = []
    for channel in store.channels().values():
        keys += [*channel.get("stages", {}).items(), (channel.get("stage", ""), channel.get("fingerprint", ""))]
        for move in models(channel)[1 : 1 + keep_models]:
            keys += [*move.stages.items(), ("finetune", move.after)]
    return keys


def _touched(folder: Path) -> datetime:
    """When a file of a folder was last written; long ago if there is none, as with work of another machine alone."""
    return datetime.fromtimestamp(max((file.st_mtime for file in _files(folder)), default=0.0), UTC)


def _files(folder: Path) -> Iterator[os.stat_result]:
    for place, _, names in os.walk(folder):
        for name in names:
            # A running stage renames and deletes files meanwhile.
            with suppress(FileNotFoundError):
                yield Path(place, name).stat()
