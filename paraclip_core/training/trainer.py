"""The training loop: text tower and logit scale against stored image features.

A step is a pure function of the state before it and of its number, and the state is all in a checkpoint: a run that was
killed and goes on gives the same bytes as one that was not, on the same number of threads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paraclip_core.clip.models import ClipModel, freeze_image_tower
from paraclip_core.config import OptimiserOptions, meaning
from paraclip_core.errors import TrainingError
from paraclip_core.progress import Progress, silent
from paraclip_core.training.batches import DataOrder
from paraclip_core.training.checkpoint import Checkpoint, CheckpointFolder
from paraclip_core.training.forward import batch_keys, embed_batch
from paraclip_core.training.guards import deterministic, sigterm_noticed
from paraclip_core.training.log import TrainingLog, rounded
from paraclip_core.training.losses import IMAGE, Pair, contrastive_loss
from paraclip_core.training.optimiser import (
    build_optimiser,
    clamp_scale,
    optimiser_tensors,
    restore_optimiser,
    trained_parameters,
)
from paraclip_core.training.rows import Batch, TrainingRows
from paraclip_core.training.schedule import learning_rate

__all__ = ["TrainingJob", "TrainingResult", "train"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingJob:
    """All that a training run is made of."""

    clip: ClipModel
    """The model, on its device; its text tower is trained in place."""
    rows: TrainingRows
    features: NDArray[np.float16]
    """Stored features of the images, [N, d]."""
    image_keys: NDArray[np.int64]
    """Equal for equal images, [N]."""
    pairs: tuple[Pair, ...]
    options: OptimiserOptions
    scratch: Path
    """Folder of the checkpoints."""
    log_path: Path
    """The training log, JSON lines."""
    mask_duplicates: bool = True
    """Leave same-text and same-image pairs out of the negatives."""
    validate: Callable[[], Mapping[str, float]] | None = None
    """Measures the model as it is; called after every epoch and after the last step."""
    keep_best: str | None = None
    """The figure of `validate` whose best weights are kept; None keeps the last ones."""


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended."""

    steps: int
    batch_size: int
    loss: float
    """Loss of the last step that was taken here; NaN where there was nothing left to do."""
    best_step: int
    """Step after which the weights are as returned."""
    best: float | None
    """The figure that chose them."""
    samples_per_second: float


def train(job: TrainingJob, progress: Progress = silent) -> TrainingResult:
    """Train, going on from the newest checkpoint in the job's scratch folder.

    Raises:
        TrainingError: there are fewer than 2 rows, the loss or a gradient is not finite, or the newest checkpoint
            belongs to another run.
    """
    with deterministic():
        return _Run(job).carry_out(progress)


class _Run:
    """State of one run between its steps."""

    def __init__(self, job: TrainingJob) -> None:
        self.job, self.options, self.device = job, job.options, job.clip.device
        freeze_image_tower(job.clip)
        self.order = DataOrder(len(job.rows), job.options.batch_size, job.options.seed)
        self.steps = self.order.steps(job.options.epochs)
        self.checks = max(1, round(job.options.epochs))
        self.kinds = tuple(dict.fromkeys(k for pair in job.pairs for k in (pair.first, pair.second) if k != IMAGE))
        self.parameters = trained_parameters(job.clip.model)
        self.logit_scale = job.clip.model.get_parameter("logit_scale")
        self.optimiser = build_optimiser(self.parameters, job.options.weight_decay)
        self.checkpoints = CheckpointFolder(job.scratch, self._identity())
        self.log = TrainingLog(job.log_path)
        self.best_step, self.best = 0, -math.inf
        self.saved_best = 0
        self.loss = math.nan

    def carry_out(self, progress: Progress) -> TrainingResult:
        start = self._resume()
        began = saved = reported = time.monotonic()
        self.job.clip.model.train()
        with sigterm_noticed() as terminated:
            for step in range(start, self.steps):
                self._step(step)
                done = step + 1
                if done * self.checks // self.steps > step * self.checks // self.steps:
                    self._validate(done)
                now = time.monotonic()
                if done == self.steps or terminated() or self._due(done, now - saved):
                    self._save(done)
                    saved = time.monotonic()
                if terminated():
                    raise TrainingError(f"stopped by SIGTERM after step {done} of {self.steps}; run again to go on")
                if now - reported > 1 or done == self.steps:
                    rate = (done - start) * self.order.batch_size / max(now - began, 1e-9)
                    progress(done, self.steps, loss=rounded(self.loss), samples_per_second=round(rate, 1))
                    reported = now
        seconds = time.monotonic() - began
        self._take_best()
        self.job.clip.model.eval()
        return TrainingResult(
            steps=self.steps,
            batch_size=self.order.batch_size,
            loss=self.loss,
            best_step=self.best_step or self.steps,
            best=self.best if math.isfinite(self.best) else None,
            samples_per_second=round((self.steps - start) * self.order.batch_size / max(seconds, 1e-9), 1),
        )

    def _step(self, step: int) -> None:
        options = self.options
        # Dropout, where a tower has any, is a function of the step as well.
        torch.manual_seed((options.seed * 1_000_003 + step) % 2**63)
        batch = self.job.rows.take(self.order.batch(step), self.kinds)
        rate = learning_rate(step, self.steps, options.learning_rate, options.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        embeddings = embed_batch(self.job.clip, batch, self.job.features, options.precision)
        keys = batch_keys(batch, self.job.image_keys, self.device) if self.job.mask_duplicates else None
        loss, parts = contrastive_loss(embeddings, self.logit_scale, self.job.pairs, keys)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), options.clip_norm)
        self.loss = float(loss.detach())
        if not math.isfinite(self.loss) or not math.isfinite(float(norm)):
            raise self._diverged(step, batch, float(norm))
        self.optimiser.step()
        clamp_scale(self.logit_scale)
        self._log_step(step + 1, parts, rate, float(norm))

    def _log_step(self, done: int, parts: Mapping[str, Tensor], rate: float, norm: float) -> None:
        self.log.write(
            {
                "step": done,
                "epoch": rounded(done * self.order.batch_size / self.order.rows),
                "loss": rounded(self.loss),
                "losses": {name: rounded(float(part)) for name, part in parts.items()},
                "learning_rate": rounded(rate),
                "gradient_norm": rounded(norm),
                "logit_scale": rounded(float(self.logit_scale.detach().exp())),
            }
        )

    def _validate(self, done: int) -> None:
        if self.job.validate is None:
            return
        figures = dict(self.job.validate())
        self.log.write({"step": done, "validation": figures})
        if self.job.keep_best is not None and figures[self.job.keep_best] > self.best:
            self.best_step, self.best = done, figures[self.job.keep_best]
            self.checkpoints.save_best(done, self.parameters)

    def _due(self, done: int, seconds: float) -> bool:
        every = self.options.checkpoint_steps
        return seconds >= 60 * self.options.checkpoint_minutes or (every > 0 and done % every == 0)

    def _save(self, done: int) -> None:
        tensors = {f"model.{name}": parameter for name, parameter in self.parameters.items()}
        tensors |= {f"adam.{name}": value for name, value in optimiser_tensors(self.optimiser, self.parameters).items()}
        best = self.best if math.isfinite(self.best) else None
        facts = {"log_bytes": self.log.sync(), "best_step": self.best_step, "best": best}
        self.checkpoints.save(Checkpoint(done, tensors, facts))
        # The checkpoint before this one is still there, and names its own best weights.
        self.checkpoints.drop_best({self.best_step, self.saved_best})
        self.saved_best = self.best_step

    def _resume(self) -> int:
        """Restore the newest checkpoint whose log and best weights are still there; the number of steps it has."""
        while (found := self.checkpoints.newest()) is not None:
            best_step = int(found.facts["best_step"])
            if self._has_best(best_step) and self.log.resume(int(found.facts["log_bytes"])):
                self._restore(found)
                log.info("going on after step %d of %d", found.step, self.steps)
                return found.step
            log.warning("the checkpoint of step %d has lost its log or its best weights; it is not used", found.step)
            self.checkpoints.forget(found.step)
        self.log.resume(0)
        return 0

    def _has_best(self, step: int) -> bool:
        return step == 0 or self.checkpoints.load_best(step) is not None

    def _restore(self, found: Checkpoint) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(found.tensors[f"model.{name}"])
        moments = {k.removeprefix("adam."): v for k, v in found.tensors.items() if k.startswith("adam.")}
        restore_optimiser(self.optimiser, self.parameters, moments)
        best = found.facts["best"]
        self.best_step = self.saved_best = int(found.facts["best_step"])
        self.best = -math.inf if best is None else float(best)

    def _take_best(self) -> None:
        if self.best_step in (0, self.steps):
            return
        weights = self.checkpoints.load_best(self.best_step)
        if weights is None:
            raise TrainingError(
                f"the best weights (step {self.best_step}) are gone from {self.job.scratch}; delete it and run again"
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])

    def _diverged(self, step: int, batch: Batch, norm: float) -> TrainingError:
        path = self.job.scratch / f"diverged-step-{step + 1:08d}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {"image_rows": batch.image_rows, "rows": self.order.batch(step)}
        for kind, tokens in batch.texts.items():
            arrays |= {f"{kind}_values": tokens.values, f"{kind}_offsets": tokens.offsets}
        np.savez(path, **arrays)
        return TrainingError(
            f"step {step + 1} of {self.steps}: loss {self.loss}, gradient norm {norm}; the batch is in {path}. "
            "Lower learning_rate or clip_norm, or use precision: fp32"
        )

    def _identity(self) -> str:
        shapes = {name: list(parameter.shape) for name, parameter in self.parameters.items()}
        pairs = [[pair.name, pair.weight] for pair in self.job.pairs]
        run = [shapes, pairs, meaning(self.options), len(self.job.rows), self.job.mask_duplicates, self.job.keep_best]
        return hashlib.blake2b(json.dumps(run, sort_keys=True).encode(), digest_size=16).hexdigest()
