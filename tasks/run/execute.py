"""Carries out one stage of a run, for every driver: a flow, a command, Python."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from paraclip.storage.artifacts import Artifact, Draft, WorkFolder, sources_of
from paraclip.storage.roots import open_store
from paraclip.tasks.results import Row, stage_row
from paraclip.tasks.run.child import call_in_child, log_path
from paraclip.tasks.run.once import make_once
from paraclip.tasks.run.run import Node, Run, Stage, StageContext, all_stages, settings_of
from paraclip.tasks.run.status import together
from paraclip_core.errors import CrashedError, StageError
from paraclip_core.progress import Progress, silent

log = logging.getLogger(__name__)

STAGES = {stage.name: stage for stage in all_stages()}
"""A stage of each name."""
MAKE = f"{__name__}:make_artifact"
TAKEN = "taken"
"""The progress fact for an artifact that another process made."""


def carry(
    node: Node, run: Run, progress: Progress, warn: Callable[[str], object], say: Callable[[str], object]
) -> tuple[Artifact, Row]:
    """Run a stage unless it is finished; returns its artifact and its row of the stage table.

    `warn` is called with each notice of the checks before it, `say` with a line about how it ended.
    """
    started, cached, facts = time.monotonic(), run.artifact(node.name) is not None, set[str]()
    for notice in node.stage.check_before(run):
        warn(notice)
    artifact = run_stage(node, run, together(progress, lambda done, total, **new: facts.update(new)))
    row = stage_row(artifact, cached or TAKEN in facts, time.monotonic() - started)
    how = "took another run's result after" if TAKEN in facts else f"{row['state']} in"
    say(f"{node.name}: {how} {row['seconds']:.1f} s, {artifact.path}")
    return artifact, row


def run_stage(stage: str | Node, run: Run, progress: Progress = silent) -> Artifact:
    """Return the artifact of one stage, and run the stage if it is missing; the stages that it reads must be finished.

    The files of an artifact from another machine may not be here.
    """
    node, store = run.node(stage) if isinstance(stage, str) else stage, run.store
    name = node.name
    if (artifact := store.peek(name, node.fingerprint)) is not None:
        return artifact
    inputs = run.inputs(node)
    log.info("%s %s %s", name, node.fingerprint, "goes on" if store.resumable(name, node.fingerprint) else "starts")
    if node.stage.isolated:
        return run_in_child(node.draft, run, inputs, progress)
    return execute(node.stage, node.draft, run, inputs, progress)


def run_in_child(draft: Draft, run: Run, inputs: Mapping[str, Artifact], progress: Progress = silent) -> Artifact:
    """Run a stage in a child process and return its artifact."""
    store = run.store
    path = log_path(store, draft.stage, draft.fingerprint)
    request = {
        "draft": asdict(draft),
        "settings": run.settings.model_dump(mode="json"),
        "root": store.location,
        "inputs": {name: artifact.fingerprint for name, artifact in inputs.items()},
    }
    call_in_child(MAKE, request, run.settings, path, progress, run.stop)
    return store.expect(draft.stage, draft.fingerprint, f"{draft.stage} ended well, see {path}")


def make_artifact(request: Mapping[str, Any], progress: Progress) -> None:
    """Run a stage in the child process started for it."""
    draft = Draft(**request["draft"])
    run = Run(settings_of(request["settings"]), open_store(request["root"]))
    inputs = {name: run.store.expect(name, value, draft.stage) for name, value in request["inputs"].items()}
    stage = run.stages[draft.stage]
    if stage.version != draft.stage_version:
        # This process loaded newer code, and its output must not get the fingerprint of the older code's.
        raise StageError(
            f"{draft.stage} is now version {stage.version} and was {draft.stage_version} when this run began: "
            f"the code has changed; run again to go on with it"
        )
    execute(stage, draft, run, inputs, progress)


def execute(
    stage: Stage, draft: Draft, run: Run, inputs: Mapping[str, Artifact], progress: Progress = silent
) -> Artifact:
    """Return the stage's artifact if it is finished; otherwise resume the stage and commit its artifact.

    The progress has the fact :data:`TAKEN` if another process finished it meanwhile.
    """

    def body(work: WorkFolder, report: Progress) -> dict[str, Any]:
        return stage.call(StageContext(run, inputs, work, report))

    try:
        artifact, made = make_once(run.store, draft, body, progress, partial(_changed_sources, stage, draft, run))
    except OSError as error:
        # If a write fails, Python's own text names no file.
        folder = run.store.work_path(draft.stage, draft.fingerprint)
        raise CrashedError(f"{error} (at work in {folder}); run again to go on from there") from error
    if not made:
        progress(1, 1, **{TAKEN: "from another run"})
    return artifact


def _changed_sources(stage: Stage, draft: Draft, run: Run) -> str:
    """Names of the sources that differ from the fingerprint; empty if the fingerprint covers no sources."""
    then = sources_of(draft.inputs)
    now = stage.sources(run) if then else {}
    changed = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    return ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
