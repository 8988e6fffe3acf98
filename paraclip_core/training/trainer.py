"""The training loop of the text encoder and its logit scale against stored image features.

A step is a pure function of its number and the state before it, and a checkpoint holds the whole state: a run that is
killed and resumed gives the same bytes as an uninterrupted one, with the same number of threads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paraclip_core.clip.encode import pick_precision
from paraclip_core.clip.model import ClipModel, freeze_image_encoder, trained_parameters, weights_hash
from paraclip_core.errors import TrainingError
from paraclip_core.options import meaning
from paraclip_core.progress import Progress, Throughput, silent
from paraclip_core.training.checkpoints import CheckpointFolder
from paraclip_core.training.data import (
    CAPTION,
    IMAGE,
    TEXTS,
    Batch,
    DataOrder,
    TrainingImages,
    TrainingRows,
    data_digest,
    make_batch,
    prefetched,
)
from paraclip_core.training.hard_negatives import HardNegatives, Vocabulary, neighbor_table
from paraclip_core.training.log import TrainingLog, rounded
from paraclip_core.training.losses import Anchor, Objective, Pair
from paraclip_core.training.options import TrainingOptions
from paraclip_core.training.process import deterministic, keep_freed_memory, sigterm_noticed
from paraclip_core.training.rewordings import Rewordings
from paraclip_core.training.trackers import Trackers

log = logging.getLogger(__name__)

BETAS, EPSILON = (0.9, 0.98), 1e-6
WARMUP = 0.1
"""Share of the steps during which the learning rate rises."""
MAX_LOGIT_SCALE = math.log(100)
CLIP_NORM = 1.0
"""Maximum gradient norm."""
CHECKPOINT_SECONDS = 60.0
"""Time between two checkpoints."""


@dataclass(frozen=True)
class TrainingJob:
    """Everything a training run needs."""

    clip: ClipModel
    """The model, on its device; its text encoder is trained in place."""
    rows: TrainingRows
    images: TrainingImages
    pairs: tuple[Pair, ...]
    options: TrainingOptions
    scratch: Path
    """Folder for checkpoints."""
    log_path: Path
    """The training log, JSON lines."""
    validate: Callable[[], Mapping[str, float]] | None = None
    """Measures the current model once per epoch, and after the last step."""
    keep_best: str | None = None
    """The figure of `validate` that selects the weights; None: keep the last ones."""
    vocabulary: Vocabulary | None = None
    """The model's words of hard negatives and rewordings; the weight of hard negatives needs it."""
    trackers: Trackers = field(default_factory=Trackers)
    """Receive the figures of every step and validation, and are closed at the end."""


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of a run."""

    steps: int
    batch_size: int
    loss: float
    """Loss of the last step computed in this process; NaN if there was none."""
    best_step: int
    """Step of the returned weights."""
    best: float | None
    """The figure that selected them; None for the last ones."""
    samples_per_second: float


def train(job: TrainingJob, progress: Progress = silent) -> TrainingResult:
    """Train, resuming from the newest checkpoint in the job's scratch folder."""
    keep_freed_memory()
    try:
        with deterministic():
            return _Run(job).run(progress)
    finally:
        job.trackers.close()


class _Run:
    """One run; only `state`, the weights and the optimizer change from step to step."""

    def __init__(self, job: TrainingJob) -> None:
        self.job, self.options, clip = job, job.options, job.clip
        freeze_image_encoder(clip)
        self.parameters = trained_parameters(clip.model)
        self.optimizer = build_optimizer(clip.model, self.options.weight_decay)
        self.order = DataOrder(len(job.rows), self.options.batch_size, self.options.seed, job.rows.starts)
        self.steps = self.order.steps(self.options.epochs)
        named = [kind for pair in job.pairs for kind in (pair.first, pair.second) if kind != IMAGE]
        features, ranks = self.options.feature_distillation, self.options.ranking_distillation
        anchored = features or ranks.weight
        needed = TEXTS if ranks.weight or ranks.teacher == "mean" else (CAPTION,)
        self.kinds = tuple(dict.fromkeys([*named, *(needed if anchored else ())]))
        hard = max((pair.hard_negatives for pair in job.pairs), default=0.0)
        self.hard_negatives, self.rewordings = _by_rule(job) if hard else (None, None)
        self.objective = Objective(
            clip,
            job.pairs,
            pick_precision(self.options.precision, clip.device),
            Anchor(clip, features, ranks, hard) if anchored else None,
        )
        self.checkpoints = CheckpointFolder(job.scratch, self._identity())
        self.log = TrainingLog(job.log_path)
        self.state: dict[str, Any] = {"step": 0, "log_bytes": 0, "best_step": 0, "best": None}
        self.best_weights: dict[str, Tensor] = {}
        self.loss = math.nan

    def run(self, progress: Progress) -> TrainingResult:
        job, steps = self.job, self.steps
        self._resume()
        first, start = self.state["step"], time.monotonic()
        job.trackers.begin(first)
        job.clip.model.train()
        throughput = Throughput(progress, steps, first, self.order.batch_size)
        epochs, saved = max(1, round(self.options.epochs)), start
        with sigterm_noticed() as terminated, prefetched(self._batch, range(first, steps)) as batches:
            for step in range(first, steps):
                with throughput.waiting():
                    batch = next(batches)
                self._step(step, batch)
                done = self.state["step"] = step + 1
                if done * epochs // steps > step * epochs // steps:
                    self._validate(done)
                stopping, every = terminated(), self.options.checkpoint_steps
                due = time.monotonic() - saved >= CHECKPOINT_SECONDS or (every > 0 and done % every == 0)
                if due or stopping or done == steps:
                    self._save()
                    saved = time.monotonic()
                if stopping:
                    raise TrainingError(f"stopped by SIGTERM after step {done} of {steps}; run again to resume")
                throughput.report(done, loss=rounded(self.loss))
        seconds = time.monotonic() - start
        if self.best_weights:
            self._copy_in(self.best_weights)
        job.clip.model.eval()
        return TrainingResult(
            steps=steps,
            batch_size=self.order.batch_size,
            loss=self.loss,
            best_step=self.state["best_step"] or steps,
            best=self.state["best"],
            samples_per_second=round((steps - first) * self.order.batch_size / max(seconds, 1e-9), 1),
        )

    def _batch(self, step: int) -> Batch:
        """The batch of a step, a pure function of its number."""
        job, indices, made, reworded = self.job, self.order.batch(step), None, None
        if self.hard_negatives is not None:
            captions, numbers = job.rows.texts[CAPTION].take(indices), job.rows.caption_numbers(indices)
            epoch = self.order.epoch(step)
            made = self.hard_negatives.of(captions, numbers, epoch)
            if self.rewordings is not None:
                reworded = self.rewordings.in_batch(job.rows, indices, captions, numbers, epoch)
        images = job.images.of_step(indices, self.options.seed, step)
        return make_batch(job.rows, indices, self.kinds, images, made, reworded)

    def _step(self, step: int, batch: Batch) -> None:
        options, scale = self.options, self.job.clip.model.get_parameter("logit_scale")
        rate = learning_rate(step, self.steps, options.learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss, parts = self.objective.gradients(batch)
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), CLIP_NORM))
        self.loss = float(loss)
        if not math.isfinite(self.loss) or not math.isfinite(norm):
            raise TrainingError(
                f"step {step + 1} of {self.steps}: loss {self.loss}, gradient norm {norm}; lower learning_rate, or use "
                "precision: fp32"
            )
        self.optimizer.step()
        if scale.requires_grad:
            clamp_scale(scale)
        self._write(
            {
                "step": step + 1,
                "epoch": rounded((step + 1) * self.order.batch_size / self.order.rows),
                "loss": rounded(self.loss),
                "losses": {name: rounded(float(part)) for name, part in parts.items()},
                "learning_rate": rounded(rate),
                "gradient_norm": rounded(norm),
                "logit_scale": rounded(float(scale.detach().exp())),
            }
        )

    def _validate(self, done: int) -> None:
        if self.job.validate is None:
            return
        figures = dict(self.job.validate())
        self._write({"step": done, "validation": figures})
        best, figure = self.state["best"], None if self.job.keep_best is None else figures[self.job.keep_best]
        if figure is not None and (best is None or figure > best):
            self.state |= {"best_step": done, "best": figure}
            self.best_weights = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def _write(self, line: Mapping[str, Any]) -> None:
        self.log.write(line)
        self.job.trackers.log(int(line["step"]), _flat(line))

    def _save(self) -> None:
        self.state["log_bytes"] = self.log.sync()
        tensors = {f"model.{name}": parameter for name, parameter in self.parameters.items()}
        tensors |= {f"best.{name}": weights for name, weights in self.best_weights.items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": value for name, value in moments.items()}
        self.checkpoints.save(self.state, tensors)

    def _resume(self) -> None:
        """Restore the newest checkpoint whose log is complete."""
        for state in self.checkpoints.sound():
            step = state["step"]
            if self.log.resume(state["log_bytes"]):
                break
            log.warning("the checkpoint of step %d is not used, because its log is lost", step)
            self.checkpoints.delete(step)
        else:
            self.log.resume(0)
            return
        self.state, tensors = self.checkpoints.load(step)
        moments: dict[int, dict[str, Tensor]] = {}
        weights: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part == "adam":
                number, _, moment = rest.partition(".")
                moments.setdefault(int(number), {})[moment] = tensor
            else:
                weights[part][rest] = tensor.to(self.job.clip.device)
        self._copy_in(weights["model"])
        self.best_weights = weights["best"]
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        log.info("resuming after step %d of %d", step, self.steps)

    @torch.no_grad()
    def _copy_in(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])

    def _identity(self) -> str:
        """Digest that identifies the run; must be computed with the initial weights."""
        pairs = [[pair.name, pair.weight, pair.hard_negatives] for pair in self.job.pairs]
        run = [list(self.parameters), pairs, meaning(self.options), self.job.keep_best]
        run += [weights_hash(self.job.clip), data_digest(self.job.rows, self.job.images)]
        return hashlib.blake2b(json.dumps(run, sort_keys=True).encode(), digest_size=16).hexdigest()


def _by_rule(job: TrainingJob) -> tuple[HardNegatives, Rewordings | None]:
    """What makes texts by rule; captions alone are not reworded."""
    assert job.vocabulary is not None, "texts by rule need the model's words for them"
    rewordings = Rewordings(job.vocabulary, job.options.seed) if job.rows.paraphrased else None
    return HardNegatives(job.vocabulary, neighbor_table(job.rows), job.options.seed), rewordings


def build_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """Fused AdamW with open_clip's betas over the trained parameters; only matrices decay."""
    parameters = list(trained_parameters(model).values())
    matrices, others = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=EPSILON, fused=True)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear rise over the first tenth of the steps, then half a cosine down to 0 (as in open_clip)."""
    rising = int(WARMUP * steps)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


@torch.no_grad()
def clamp_scale(logit_scale: Tensor) -> None:
    """Keep the scale of the cosines between 1 and 100, in place."""
    logit_scale.clamp_(0, MAX_LOGIT_SCALE)


def _flat(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """A log line's figures under names such as ``losses/image~paraphrase_2``."""
    figures: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            figures |= _flat(value, f"{prefix}{name}/")
        elif name != "step":
            figures[prefix + name] = float(value)
    return figures
