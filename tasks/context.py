"""One run: its settings, its store and its stages, made once at the door and handed down."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.features import FeatureRows, FeatureStore
from paraclip.storage.fingerprint import FileHashes, fingerprint
from paraclip.storage.manifests import SOURCE
from paraclip.storage.roots import open_store
from paraclip.tasks.child import Stop, run_in_child
from paraclip.tasks.registry import stages_of
from paraclip.tasks.stage import Node, Stage, carry_out, software_versions
from paraclip.tasks.stages.evaluate import check_benchmarks
from paraclip.tasks.stages.paraphrase import step_batches
from paraclip.tasks.status import EventLog, both, events_path
from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError, ConfigError
from paraclip_core.paraphrase.engines import Paraphraser
from paraclip_core.progress import Progress, silent
from paraclip_core.training.trackers import check_trackers

log = logging.getLogger(__name__)


class Run:
    """Settings with what belongs to them. Nothing below the door opens a store or resolves the stages again.

    A source file that changes while the run goes on does not change its stages: the fingerprints are of the moment when
    each was asked for first.
    """

    def __init__(
        self, settings: Settings, store: ArtifactStore | None = None, stages: Mapping[str, Stage] | None = None
    ) -> None:
        """A run of `settings`, in the store at `run.root`, with the stages that they name, unless others are given."""
        self.settings = settings
        self.store = store or open_store(settings.run.root)
        self.stages = stages_of(settings) if stages is None else stages
        self.stop = Stop()
        """Set to end every process that works for this run."""
        self.hashes = FileHashes(self.store.cache / "source_hashes.json")
        """Hashes of source files."""
        data, options = settings.data, settings.run
        self.paraphraser = Paraphraser(
            settings.paraphrase, data.root, options.device, self._model_hashes, RunCorpus(self)
        )
        """The engine that is asked, its options as far as they matter, and its gates."""
        self._nodes: dict[str, Node] = {}

    def _model_hashes(self, files: Iterable[Path]) -> dict[str, str]:
        """Hashes of a language model's weights, which are read once for each root and change."""
        weights = list(files)
        return FileHashes(self.store.cache / "model_hashes.json").of(weights) if weights else {}

    @property
    def nodes(self) -> dict[str, Node]:
        """Every stage with its fingerprint, in an order in which inputs come first."""
        return {name: self.node(name) for name in self.stages}

    def node(self, name: str) -> Node:
        """One stage with its fingerprint; only the stages that it depends on are looked at."""
        if name not in self._nodes:
            if name not in self.stages:
                raise ConfigError(f"a run with these settings has no stage {name!r}; it has {', '.join(self.stages)}")
            stage = self.stages[name]
            inputs = {upstream: self.node(upstream).fingerprint for upstream in stage.inputs(self.settings)}
            inputs |= {f"{SOURCE}{key}": value for key, value in stage.sources(self).items()}
            options = dict(stage.options(self))
            name_of_all = fingerprint(name, stage.version, options, inputs)
            self._nodes[name] = Node(
                stage, Draft(name, name_of_all, stage.version, inputs, options, software_versions())
            )
        return self._nodes[name]

    def artifact(self, name: str) -> Artifact | None:
        """A stage's finished artifact, whose files may not be here; None where it is not finished."""
        return self.store.peek(name, self.node(name).fingerprint)

    def artifacts(self) -> dict[str, Artifact]:
        """Every finished stage's artifact, whose files may not be here."""
        artifacts = {name: self.artifact(name) for name in self.stages}
        return {name: artifact for name, artifact in artifacts.items() if artifact is not None}

    def inputs(self, node: Node) -> dict[str, Artifact]:
        """The finished artifacts that a stage reads."""
        artifacts = {}
        for name, value in node.draft.inputs.items():
            if name.startswith(SOURCE):
                continue
            artifact = self.store.find(name, value)
            if artifact is None:
                raise ArtifactError(
                    f"{node.name} needs the artifact {name}/{value}, which is not there; run {name} first (and again, "
                    f"where a source file has changed since)"
                )
            artifacts[name] = artifact
        return artifacts

    def check_trackers(self) -> None:
        """See that the trackers of a run whose stages all run here can be opened when it comes to training."""
        options = self.settings.run
        if not options.trackers or options.placement != "inline":
            return
        if any(stage.trains and self.artifact(name) is None for name, stage in self.stages.items()):
            check_trackers(options.trackers)


class RunCorpus:
    """What the stages of a run made, for an engine that looks answers up there."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def fingerprint(self, stage: str) -> str:
        """Fingerprint of a stage's artifact."""
        return self._run.node(stage).fingerprint

    def captions(self, columns: Sequence[str]) -> Iterable[pa.RecordBatch]:
        """These columns of the training captions."""
        return step_batches(self._folder("ingest"), 1, 1.0)(columns)

    def features(self, image_ids: pa.Array) -> tuple[FeatureRows, NDArray[np.int64]]:
        """The feature matrix, and the row in it of each image."""
        store = FeatureStore(self._folder("features"))
        return store.view(), store.find(image_ids)

    def _folder(self, stage: str) -> Path:
        artifact = self._run.store.find(stage, self.fingerprint(stage))
        if artifact is None:
            raise ArtifactError(f"the artifact {stage}/{self.fingerprint(stage)} is not there; run {stage} first")
        return artifact.path


def run_stage(name: str, run: Run, progress: Progress = silent) -> Artifact:
    """The artifact of one stage, made if it is not there; the stages that it reads must be finished.

    The files of one that was finished on another machine may not be here.
    """
    return run_node(run.node(name), run, progress)


def run_node(node: Node, run: Run, progress: Progress = silent) -> Artifact:
    """The artifact of a resolved stage, made if it is not there."""
    name, store = node.name, run.store
    if (artifact := store.peek(name, node.fingerprint)) is not None:
        return artifact
    inputs = run.inputs(node)
    if node.stage.trains:
        check_benchmarks(run, inputs)
    log.info("%s %s %s", name, node.fingerprint, "goes on" if store.resumable(name, node.fingerprint) else "starts")
    with EventLog(events_path(store, name, node.fingerprint), name, node.fingerprint) as events:
        shown = both(progress, events.progress)
        if node.stage.isolated:
            artifact = run_in_child(node.draft, run, inputs, shown)
        else:
            artifact = carry_out(node.stage, node.draft, run, inputs, shown)
        events.counted(artifact.manifest.metrics)
    return artifact
