"""One stage of a run, for every driver: a flow, a command, Python."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from paraclip.storage.artifacts import Artifact, Draft
from paraclip.storage.roots import open_store
from paraclip.tasks.run.child import call_in_child, log_path
from paraclip.tasks.run.run import Node, Run, settings_of
from paraclip.tasks.run.stage import carry_out
from paraclip.tasks.stages.evaluate import EVALUATE, check_benchmarks
from paraclip.tasks.stages.features import FEATURES
from paraclip.tasks.stages.ingest import INGEST
from paraclip.tasks.stages.paraphrase import PARAPHRASE_1, PARAPHRASE_2
from paraclip.tasks.stages.report import REPORT
from paraclip.tasks.stages.scenes import SCENES
from paraclip.tasks.stages.training import BOOTSTRAP, CONTROL, FINETUNE
from paraclip_core.errors import StageError
from paraclip_core.progress import Progress, silent

log = logging.getLogger(__name__)

STAGES = {
    stage.name: stage
    for stage in (
        SCENES, INGEST, PARAPHRASE_1, PARAPHRASE_2, FEATURES, BOOTSTRAP, FINETUNE, CONTROL, EVALUATE, REPORT
    )
}  # fmt: skip
"""The built-in stages, in an order in which inputs come first."""
MAKE = f"{__name__}:make_artifact"


def run_stage(stage: str | Node, run: Run, progress: Progress = silent) -> Artifact:
    """The artifact of one stage, made if it is not there; the stages that it reads must be finished.

    The files of one that was finished on another machine may not be here.
    """
    node, store = run.node(stage) if isinstance(stage, str) else stage, run.store
    name = node.name
    if (artifact := store.peek(name, node.fingerprint)) is not None:
        return artifact
    inputs = run.inputs(node)
    if node.stage.trains:
        check_benchmarks(run, inputs)
    log.info("%s %s %s", name, node.fingerprint, "goes on" if store.resumable(name, node.fingerprint) else "starts")
    if node.stage.isolated:
        return run_in_child(node.draft, run, inputs, progress)
    return carry_out(node.stage, node.draft, run, inputs, progress)


def run_in_child(draft: Draft, run: Run, inputs: Mapping[str, Artifact], progress: Progress = silent) -> Artifact:
    """Carry out a stage in a child process and return its artifact."""
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
    """Carry out a stage, in the process made for it."""
    draft = Draft(**request["draft"])
    run = Run(settings_of(request["settings"]), open_store(request["root"]))
    inputs = {name: run.store.expect(name, value, draft.stage) for name, value in request["inputs"].items()}
    stage = run.stages[draft.stage]
    if stage.version != draft.stage_version:
        # This process has read the code anew, and its output must not get the name of the earlier code's.
        raise StageError(
            f"{draft.stage} is version {stage.version} by now and was {draft.stage_version} when this run began: "
            f"the code was changed; run again to go on with it"
        )
    carry_out(stage, draft, run, inputs, progress)
