"""One stage of a run: found, or carried out where it belongs."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError
from paraclip_core.progress import Progress, silent
from storage.artifacts import Artifact, ArtifactStore
from tasks.child import STAGES_REFERENCE, run_in_child
from tasks.dag import STAGES, Node, input_artifacts, resolve
from tasks.stage import Stage, carry_out

__all__ = ["finished_artifacts", "run_stage"]

log = logging.getLogger(__name__)


def run_stage(
    name: str,
    settings: Settings,
    progress: Progress = silent,
    stages: Mapping[str, Stage] = STAGES,
    reference: str = STAGES_REFERENCE,
) -> Artifact:
    """The artifact of one stage, made if it is not there; the stages that it reads must be finished.

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
    store = ArtifactStore(settings.run.root)
    nodes = resolve(settings, store, stages)
    if name not in nodes:
        raise ConfigError(f"a run with these settings has no stage {name!r}; it has {', '.join(nodes)}")
    node = nodes[name]
    found = store.find(name, node.fingerprint)
    if found is not None:
        return found
    inputs = input_artifacts(node, store)
    log.info("%s %s %s", name, node.fingerprint, "goes on" if store.resumable(name, node.fingerprint) else "starts")
    if node.stage.isolated:
        return run_in_child(node.draft, settings, store, inputs, progress, reference)
    return carry_out(node.stage, node.draft, settings, store, inputs, progress)


def finished_artifacts(nodes: Mapping[str, Node], store: ArtifactStore) -> dict[str, Artifact]:
    """The stages of a run that are finished, with their artifacts.

    Raises:
        ArtifactError: one of them is damaged.
    """
    found = {name: store.find(name, node.fingerprint) for name, node in nodes.items()}
    return {name: artifact for name, artifact in found.items() if artifact is not None}
