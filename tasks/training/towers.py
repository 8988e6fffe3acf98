"""Towers: the text encoder that one candidate's training ends with, kept as an artifact of its own.

A kill in the middle of the second candidate costs what a checkpoint costs, and one more learning rate trains one more
tower. Nothing else reads a tower, so `paraclip artifacts gc` deletes it once the release is made.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from paraclip.storage.artifacts import Artifact, Draft
from paraclip.storage.fingerprint import fingerprint
from paraclip.tasks.run.run import StageContext, software_versions
from paraclip_core.clip.encode import tokenize
from paraclip_core.clip.model import ClipModel, trained_parameters, weights_hash
from paraclip_core.options import meaning
from paraclip_core.progress import Fact
from paraclip_core.tensor_file import write_tensors
from paraclip_core.training.hard_negatives import Vocabulary, vocabulary
from paraclip_core.training.losses import named_pairs
from paraclip_core.training.options import Candidate
from paraclip_core.training.trackers import TrackedRun, Trackers
from paraclip_core.training.trainer import TrainingJob, train

TOWER, VERSION = "tower", 2
WEIGHTS, LOG = "tower.safetensors", "training_log.jsonl"


def tower_weights(artifact: Artifact, clip: ClipModel) -> dict[str, Tensor]:
    """A tower's trained parameters, on the model's device."""
    return load_file(artifact.path / WEIGHTS, device=str(clip.device))


def words_of(clip: ClipModel) -> Vocabulary:
    """The words of negations as the model's tokenizer writes them."""
    return vocabulary(partial(tokenize, clip), clip.context_length)


def tower(ctx: StageContext, candidate: Candidate, job: TrainingJob, facts: Mapping[str, Fact]) -> Artifact:
    """Find the tower of a candidate, or train it from the weights that `job.clip` has, the base's.

    `facts` are shown with the progress. The model holds other weights afterwards if the tower was trained.
    """
    store, options = ctx.store, candidate.options
    inputs = {name: artifact.fingerprint for name, artifact in ctx.inputs.items()}
    about = {
        "training": meaning(options),
        "texts": ctx.settings.finetune.texts,
        "validation": ctx.settings.finetune.validation,
        "base": weights_hash(job.clip),
    }
    key = fingerprint(TOWER, VERSION, about, inputs)
    if (artifact := store.find(TOWER, key)) is not None:
        return artifact
    waiting = partial(ctx.progress, 0, None, waiting="for another run of the same training", **facts)
    with store.writing(TOWER, key, waiting, inputs) as work:
        if (artifact := store.find(TOWER, key)) is not None:
            return artifact
        began = time.monotonic()

        def report(done: int, total: int | None, **more: Fact) -> None:
            ctx.progress(done, total, **facts, **more)
            work.push()

        name = f"{ctx.settings.name}-{candidate.recipe}-{options.learning_rate:g}-{key[:12]}"
        run = TrackedRun(name, store.root / "logs/trackers", meaning(options))
        result = train(
            replace(
                job,
                pairs=named_pairs(options.weights),
                options=options,
                vocabulary=words_of(job.clip) if options.weights.hard_negatives else None,
                scratch=work.scratch / "checkpoints",
                log_path=work.out / LOG,
                trackers=Trackers(ctx.settings.run.trackers, run),
            ),
            report,
        )
        parameters = trained_parameters(job.clip.model)
        write_tensors({name: each.detach().cpu().contiguous() for name, each in parameters.items()}, work.out / WEIGHTS)
        metrics: dict[str, Any] = {
            "rows": len(job.rows),
            "steps": result.steps,
            "batch_size": result.batch_size,
            "samples_per_second": result.samples_per_second,
        }
        draft = Draft(TOWER, key, VERSION, inputs, about, software_versions())
        return store.commit(draft, metrics, time.monotonic() - began)
