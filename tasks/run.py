"""One stage of a run: found, or carried out where it belongs."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError
from paraclip_core.progress import Progress, silent
from paraclip_core.training.trackers import check_trackers
from storage.artifacts import Artifact, ArtifactStore
from storage.roots import open_store
from tasks.child import STAGES_REFERENCE, run_in_child
from tasks.dag import STAGES, Node, input_artifacts, resolve
from tasks.display import both
from tasks.events import EventLog, events_path
from tasks.stage import Stage, carry_out
from tasks.stages.evaluate import check_benchmarks

__all__ = ["check_run", "finished_artifacts", "run_node", "run_stage", "stage_node"]

TRAINING = ("bootstrap", "finetune")
"""What takes long enough that a mistake in what comes after it must be found before."""

log = logging.getLogger(__name__)


def run_stage(
    name: str,
    settings: Settings,
    progress: Progress = silent,
    stages: Mapping[str, Stage] = STAGES,
    reference: str = STAGES_REFERENCE,
) -> Artifact:
    """The artifact of one stage, made if it is not there; the stages that it reads must be finished.

    The files of one that was finished on another machine may not be here.

    Args:
        name: the stage.
        settings: the run's settings.
        progress: told how far the stage is.
        stages: every stage by name.
        reference: where a child process finds `stages`, as ``module:name``.

    Raises:
        ConfigError: this run has no such stage.
        ParaclipError: what the stage raised.
    """
    store = open_store(settings.run.root)
    return run_node(stage_node(name, settings, store, stages), settings, store, progress, reference)


def stage_node(name: str, settings: Settings, store: ArtifactStore, stages: Mapping[str, Stage] = STAGES) -> Node:
    """One stage of a run, resolved.

    Raises:
        ConfigError: this run has no such stage.
        InputError: a source file is missing.
    """
    nodes = resolve(settings, store, stages)
    if name not in nodes:
        raise ConfigError(f"a run with these settings has no stage {name!r}; it has {', '.join(nodes)}")
    return nodes[name]


def run_node(
    node: Node,
    settings: Settings,
    store: ArtifactStore,
    progress: Progress = silent,
    reference: str = STAGES_REFERENCE,
) -> Artifact:
    """The artifact of a resolved stage, made if it is not there.

    Raises:
        ArtifactError: what the stage reads is not there.
        ParaclipError: what the stage raised.
    """
    name = node.name
    found = store.peek(name, node.fingerprint)
    if found is not None:
        return found
    inputs = input_artifacts(node, store)
    if name in TRAINING:
        check_benchmarks(settings, store, inputs)
    log.info("%s %s %s", name, node.fingerprint, "goes on" if store.resumable(name, node.fingerprint) else "starts")
    with EventLog(events_path(store, name, node.fingerprint), name, node.fingerprint) as events:
        told = both(progress, events.progress)
        if node.stage.isolated:
            artifact = run_in_child(node.draft, settings, store, inputs, told, reference)
        else:
            artifact = carry_out(node.stage, node.draft, settings, store, inputs, told)
        events.counted(artifact.manifest.metrics)
    return artifact


def check_run(settings: Settings, nodes: Mapping[str, Node], store: ArtifactStore) -> None:
    """See that the trackers of a run whose stages all run here can be opened when it comes to train, hours later.

    Raises:
        ConfigError: a tracker's package is not installed.
    """
    if not settings.run.trackers or settings.run.placement != "inline":
        return
    if any(name in nodes and store.peek(name, nodes[name].fingerprint) is None for name in TRAINING):
        check_trackers(settings.run.trackers)


def finished_artifacts(nodes: Mapping[str, Node], store: ArtifactStore) -> dict[str, Artifact]:
    """The stages of a run that are finished, with their artifacts, whose files may not be here.

    Raises:
        ArtifactError: one of them is damaged.
    """
    found = {name: store.peek(name, node.fingerprint) for name, node in nodes.items()}
    return {name: artifact for name, artifact in found.items() if artifact is not None}
