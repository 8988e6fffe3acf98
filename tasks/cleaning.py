"""Which artifacts nobody needs any more."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from paraclip.storage.artifacts import Artifact, ArtifactStore
from paraclip.storage.files import storage_error
from paraclip.tasks.history import KEPT_MODELS, models
from paraclip_core.errors import LockedError

Key = tuple[str, str]
"""Stage and fingerprint."""


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


@dataclass(frozen=True)
class Left:
    """What would go if nobody were using it."""

    stage: str
    fingerprint: str
    why: str

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Collected:
    """What may go, and what a living process keeps from going."""

    rubbish: list[Rubbish]
    left: list[Left]
    young: int
    """Artifacts that stay for their age alone, those that they were made from included."""


def collect(
    store: ArtifactStore, keep_days: float = 0.0, unfinished: bool = False, keep_models: int = KEPT_MODELS
) -> Collected:
    """Artifacts that belong to no run of a channel's latest models, and that no kept artifact was made from.

    What a stage or a run in progress needs, and what is younger than `keep_days`, stays with everything that it was
    made from; `keep_models` of each channel's history stay besides the one that it serves. With `unfinished` work that
    nobody is writing counts as well.
    """
    artifacts, used = _artifacts(store)
    young = datetime.now(UTC) - timedelta(days=keep_days)
    needed = _of_channels(store, keep_models)
    recent = [key for key, a in artifacts.items() if datetime.fromisoformat(a.manifest.created) > young]
    staying = _with_origins([*needed, *recent], artifacts)
    candidates = [
        Rubbish(a.stage, a.fingerprint, a.path, a.manifest.size(), a, store)
        for key, a in artifacts.items()
        if key not in staying
    ]
    candidates += [
        Rubbish(stage, name, path, _size(path), None, store)
        for stage, name, path in store.unfinished()
        # A commit that was killed at its very end leaves work that nothing goes on with.
        if unfinished or (stage, name) in artifacts
    ]
    names = {(item.stage, item.fingerprint) for item in candidates}
    left = [Left(*key, why) for key, why in sorted(used.items()) if key in names]
    rubbish = [item for item in candidates if (item.stage, item.fingerprint) not in used]
    return Collected(rubbish, left, len(staying) - len(_with_origins(needed, artifacts)))


def remove(rubbish: Sequence[Rubbish], keep_models: int = KEPT_MODELS) -> list[Left]:
    """Delete what was collected, but for what somebody uses, or something was made from, since; that is given back."""
    left = []
    for store in dict.fromkeys(item.store for item in rubbish):
        artifacts, used = _artifacts(store)
        doomed = {(item.stage, item.fingerprint) for item in rubbish if item.artifact is not None}
        needed = _with_origins([*_of_channels(store, keep_models), *(artifacts.keys() - doomed)], artifacts)
        for item in rubbish:
            key = item.stage, item.fingerprint
            try:
                if key in used:
                    left.append(Left(*key, used[key]))
                elif item.artifact is not None and key in needed:
                    left.append(Left(*key, "a channel or an artifact has come to need it"))
                elif item.artifact is not None:
                    store.remove(item.artifact)
                else:
                    store.discard(*key)
            except LockedError as error:
                left.append(Left(*key, str(error)))
            except OSError as error:
                raise storage_error(error, item.path) from error
    return left


def _artifacts(store: ArtifactStore) -> tuple[dict[Key, Artifact], dict[Key, str]]:
    """All artifacts; and why one, or unfinished work, must stay, for each that a living process makes or needs."""
    # First who makes what: what is not being made any more is then in the list.
    holders = store.holders()
    artifacts = {(artifact.stage, artifact.fingerprint): artifact for artifact in store.list()}
    used: dict[Key, str] = {}
    for holder in holders:
        used[holder.stage, holder.fingerprint] = holder.description
    for holder in holders:
        # Unfinished work of a run's later stages, too.
        for key in {*holder.reads.items(), *_with_origins(list(holder.reads.items()), artifacts)}:
            used.setdefault(key, holder.description)
    return artifacts, used


def _with_origins(keys: list[Key], artifacts: Mapping[Key, Artifact]) -> set[Key]:
    """The artifacts with these names, and all that they were made from."""
    reached: set[Key] = set()
    while keys:
        key = keys.pop()
        if key not in reached and key in artifacts:
            reached.add(key)
            keys += list(artifacts[key].manifest.inputs.items())
    return reached


def _of_channels(store: ArtifactStore, keep_models: int) -> list[Key]:
    keys: list[Key] = []
    for channel in store.channels().values():
        keys += [*channel.get("stages", {}).items(), (channel.get("stage", ""), channel.get("fingerprint", ""))]
        for move in models(channel)[1 : 1 + keep_models]:
            keys += [*move.stages.items(), ("finetune", move.after)]
    return keys


def _size(folder: Path) -> int:
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            # A stage that is at work renames and deletes files meanwhile.
            with suppress(FileNotFoundError):
                size += Path(place, name).stat().st_size
    return size
