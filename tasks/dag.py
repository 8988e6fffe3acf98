"""The DAG of one run: which stages it has, and the fingerprint of each before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError
from storage.artifacts import Artifact, ArtifactStore, Draft
from storage.fingerprint import FileHashes, fingerprint
from storage.manifests import SOURCE
from tasks.stage import Stage, software_versions
from tasks.stages.bootstrap import BOOTSTRAP
from tasks.stages.evaluate import EVALUATE
from tasks.stages.features import FEATURES
from tasks.stages.finetune import FINETUNE
from tasks.stages.ingest import INGEST
from tasks.stages.paraphrase import PARAPHRASE_1, PARAPHRASE_2
from tasks.stages.report import REPORT
from tasks.stages.scenes import SCENES

__all__ = ["STAGES", "Node", "input_artifacts", "resolve", "stage_names"]

STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        SCENES, INGEST, PARAPHRASE_1, PARAPHRASE_2, FEATURES, BOOTSTRAP, FINETUNE, EVALUATE, REPORT
    )
}  # fmt: skip
"""Every stage in an order in which inputs come first."""


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


def stage_names(settings: Settings, stages: Mapping[str, Stage] = STAGES) -> tuple[str, ...]:
    """The stages that a run with these settings has, in order."""
    return tuple(
        name
        for name in stages
        if not (name == "scenes" and settings.data.scenes is None)
        and not (name == "bootstrap" and settings.model.base != "embedded")
    )


def resolve(settings: Settings, store: ArtifactStore, stages: Mapping[str, Stage] = STAGES) -> dict[str, Node]:
    """Every stage of the run with its fingerprint, in order.

    Raises:
        InputError: a source file is missing.
        ConfigError: options contradict each other.
    """
    hashes = FileHashes(store.cache / "source_hashes.json")
    versions = software_versions()
    nodes: dict[str, Node] = {}
    for name in stage_names(settings, stages):
        stage = stages[name]
        inputs = {upstream: nodes[upstream].fingerprint for upstream in stage.inputs(settings)}
        sources = {f"{SOURCE}{key}": value for key, value in stage.sources(settings, hashes).items()}
        options = dict(stage.options(settings))
        name_of_all = fingerprint(name, stage.version, options, {**inputs, **sources})
        draft = Draft(name, name_of_all, stage.version, {**inputs, **sources}, options, versions)
        nodes[name] = Node(stage, draft)
    return nodes


def input_artifacts(node: Node, store: ArtifactStore) -> dict[str, Artifact]:
    """The finished artifacts that a stage reads.

    Raises:
        ArtifactError: one of them is not there; run the stages before it first.
    """
    found = {}
    for name, value in node.draft.inputs.items():
        if name.startswith(SOURCE):
            continue
        artifact = store.find(name, value)
        if artifact is None:
            raise ArtifactError(
                f"{node.name} needs the artifact {name}/{value}, which is not there; run {name} first (and again, "
                f"where a source file has changed since)"
            )
        found[name] = artifact
    return found
