"""Candidates: the text encoder that a recipe at a learning rate ends with, kept as an artifact of its own.

A kill in the middle of the second candidate costs what a checkpoint costs, and one more learning rate trains one more
candidate. Only `finetune` and `control` read it, so `paraclip artifacts gc` deletes it once the release is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from paraclip.storage.artifacts import Artifact, Draft, WorkFolder
from paraclip.storage.fingerprint import fingerprint
from paraclip.tasks.run.once import make_once
from paraclip.tasks.run.run import StageContext, software_versions
from paraclip.tasks.training.data import TuningData
from paraclip_core.clip.encode import tokenize
from paraclip_core.clip.model import ClipModel, trained_parameters
from paraclip_core.options import meaning
from paraclip_core.progress import Progress
from paraclip_core.tensor_file import write_tensors
from paraclip_core.training.hard_negatives import vocabulary
from paraclip_core.training.losses import named_pairs
from paraclip_core.training.options import Candidate
from paraclip_core.training.trackers import TrackedRun, Trackers
from paraclip_core.training.trainer import TrainingJob, train

CANDIDATE, VERSION = "candidate", 2
WEIGHTS, LOG = "text_encoder.safetensors", "training_log.jsonl"


def candidate_weights(artifact: Artifact, clip: ClipModel) -> dict[str, Tensor]:
    """A candidate's trained parameters, on the model's device."""
    return load_file(artifact.path / WEIGHTS, device=str(clip.device))


def candidate_draft(ctx: StageContext, candidate: Candidate, base: str) -> Draft:
    """The draft of a candidate's artifact; `base` is the hash of the base's weights."""
    inputs = {name: artifact.fingerprint for name, artifact in ctx.inputs.items()}
    options = {
        "training": meaning(candidate.options),
        "texts": ctx.settings.finetune.texts,
        "validation": ctx.settings.finetune.validation,
        "base": base,
    }
    key = fingerprint(CANDIDATE, VERSION, options, inputs)
    return Draft(CANDIDATE, key, VERSION, inputs, options, software_versions())


@dataclass(frozen=True)
class Trained:
    """A candidate and its artifact."""

    candidate: Candidate
    artifact: Artifact

    @property
    def metrics(self) -> dict[str, Any]:
        """What its training measured."""
        return self.artifact.manifest.metrics


def train_candidate(
    ctx: StageContext, candidate: Candidate, draft: Draft, clip: ClipModel, data: TuningData, progress: Progress
) -> Trained:
    """Find a candidate, or train it from the weights that the model has, the base's, which changes the model."""
    name = f"{ctx.settings.name}-{candidate.recipe}-{candidate.options.learning_rate:g}-{draft.fingerprint[:12]}"
    run = TrackedRun(name, ctx.store.root / "logs/trackers", meaning(candidate.options))

    def body(work: WorkFolder, report: Progress) -> dict[str, Any]:
        weights = candidate.options.weights
        job = TrainingJob(
            clip=clip,
            rows=data.rows,
            images=data.images,
            pairs=named_pairs(weights),
            options=candidate.options,
            scratch=work.scratch / "checkpoints",
            log_path=work.out / LOG,
            vocabulary=vocabulary(partial(tokenize, clip), clip.context_length) if weights.hard_negatives else None,
            trackers=Trackers(ctx.settings.run.trackers, run),
        )
        result = train(job, report)
        parameters = trained_parameters(clip.model)
        write_tensors({k: value.detach().cpu().contiguous() for k, value in parameters.items()}, work.out / WEIGHTS)
        return {
            "rows": len(data.rows),
            "steps": result.steps,
            "batch_size": result.batch_size,
            "samples_per_second": result.samples_per_second,
        }

    return Trained(candidate, make_once(ctx.store, draft, body, progress)[0])
