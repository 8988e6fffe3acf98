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
from dataclasses import dataclass, field
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
from paraclip_core.training.averaging import WeightAverage
from paraclip_core.training.batches import DataOrder
from paraclip_core.training.checkpoint import Checkpoint, CheckpointFolder
from paraclip_core.training.distributed import ALONE, Processes
from paraclip_core.training.effort import matmul_rate, step_flops
from paraclip_core.training.forgetting import Anchor
from paraclip_core.training.forward import ImageFeatures, Prepared, batches_ahead
from paraclip_core.training.guards import deterministic, save_batch, sigterm_noticed
from paraclip_core.training.identity import data_digest, weights_digest
from paraclip_core.training.log import TrainingLog, rounded
from paraclip_core.training.losses import IMAGE, Pair
from paraclip_core.training.memory import keep_freed_memory, memory_for_batches
from paraclip_core.training.objective import Objective
from paraclip_core.training.optimiser import (
    build_optimiser,
    clamp_scale,
    embedding_tables,
    optimiser_tensors,
    restore_optimiser,
    set_learning_rate,
    tower_layers,
    trained_parameters,
)
from paraclip_core.training.pace import Pace
from paraclip_core.training.rows import TrainingRows
from paraclip_core.training.schedule import learning_rate
from paraclip_core.training.trackers import Trackers

__all__ = ["TrainingJob", "TrainingResult", "train"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingJob:
    """All that a training run is made of."""

    clip: ClipModel
    """The model, on its device; those of its text tower's parameters that take gradients are trained in place."""
    rows: TrainingRows
    features: ImageFeatures
    """Stored features of the images, float16 [N, d]."""
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
    """Measures the model as it is; called `validations` times, the last time after the last step."""
    validations: int = 0
    """How often, at even distances; 0: once an epoch."""
    keep_best: str | None = None
    """The figure of `validate` whose best weights are kept; None keeps the last ones."""
    distil: float = 0.0
    """Weight of the distance to the base tower's caption embeddings, see :mod:`paraclip_core.training.forgetting`."""
    l2_sp: float = 0.0
    """Weight of the distance to the base's weights."""
    trackers: Trackers = field(default_factory=Trackers)
    """Told the figures of every step and validation; closed at the end."""
    processes: Processes = ALONE
    """Who trains together; all have the same job, and the first one writes."""


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
    keep_freed_memory()
    try:
        with deterministic():
            return _Run(job).carry_out(progress)
    finally:
        job.trackers.close()


class _Run:
    """State of one run between its steps."""

    def __init__(self, job: TrainingJob) -> None:
        self.job, self.options, self.device = job, job.options, job.clip.device
        freeze_image_tower(job.clip)
        self.order = DataOrder(len(job.rows), job.options.batch_size, job.options.seed, job.rows.starts)
        self.steps = self.order.steps(job.options.epochs)
        self.checks = job.validations or max(1, round(job.options.epochs))
        self.kinds = tuple(dict.fromkeys(k for pair in job.pairs for k in (pair.first, pair.second) if k != IMAGE))
        if job.distil:
            self.kinds = tuple(dict.fromkeys((*self.kinds, "caption")))
        self.parameters = trained_parameters(job.clip.model)
        self.logit_scale = job.clip.model.get_parameter("logit_scale")
        self.optimiser = build_optimiser(
            self.parameters,
            job.options.weight_decay,
            job.options.layer_decay,
            embedding_tables(job.clip.model),
            tower_layers(job.clip.model),
        )
        self.average = WeightAverage(self.parameters, job.options.ema)
        self.objective = Objective(
            job.clip,
            job.pairs,
            job.options.precision,
            job.options.memory_gib or memory_for_batches(self.device, job.processes.count),
            Anchor(job.clip, job.distil, job.l2_sp),
            job.processes,
        )
        self.checkpoints = CheckpointFolder(job.scratch, self._identity())
        self.log = TrainingLog(job.log_path)
        self.best_step, self.best = 0, -math.inf
        self.saved_best = 0
        self.loss = math.nan

    def carry_out(self, progress: Progress) -> TrainingResult:
        start = self._resume()
        self.job.trackers.begin(start)
        began = time.monotonic()
        self.job.clip.model.train()
        self._loop(start, progress)
        seconds = time.monotonic() - began
        self.average.take()
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

    def _loop(self, start: int, progress: Progress) -> None:
        job, processes = self.job, self.job.processes
        keys = job.image_keys if job.mask_duplicates else None
        told = progress if processes.first else silent
        rate = matmul_rate(job.clip, self.options.precision) * processes.count
        pace = Pace(told, self.steps, start, self.order.batch_size, rate)
        saved = time.monotonic()
        with (
            sigterm_noticed() as terminated,
            batches_ahead(job.rows, self.order, self.kinds, job.features, keys, range(start, self.steps)) as batches,
        ):
            for step in range(start, self.steps):
                with pace.waiting():
                    prepared = next(batches)
                self._step(step, prepared)
                pace.compute(step_flops(job.clip, prepared.tokens))
                done = step + 1
                if done * self.checks // self.steps > step * self.checks // self.steps:
                    self._validate(done)
                stopping = processes.any(terminated())
                if done == self.steps or stopping or self._due(done, time.monotonic() - saved):
                    self._save(done)
                    saved = time.monotonic()
                if stopping:
                    raise TrainingError(f"stopped by SIGTERM after step {done} of {self.steps}; run again to go on")
                pace.tell(done, loss=rounded(self.loss))

    def _step(self, step: int, prepared: Prepared) -> None:
        options = self.options
        rate = learning_rate(step, self.steps, options.learning_rate, options.warmup)
        set_learning_rate(self.optimiser, rate)
        self.optimiser.zero_grad(set_to_none=True)
        loss, parts = self.objective.gradients(prepared, options.seed * 1_000_003 + step)
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), options.clip_norm)
        self.loss = float(loss)
        if not math.isfinite(self.loss) or not math.isfinite(float(norm)):
            raise self._diverged(step, prepared, float(norm))
        self.optimiser.step()
        if self.logit_scale.requires_grad:
            clamp_scale(self.logit_scale)
        self.average.update(step + 1)
        self._log_step(step + 1, parts, rate, float(norm))

    def _log_step(self, done: int, parts: Mapping[str, Tensor], rate: float, norm: float) -> None:
        self._write(
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

    def _write(self, line: Mapping[str, Any]) -> None:
        if self.job.processes.first:
            self.log.write(line)
            self.job.trackers.log(int(line["step"]), _flat(line))

    def _validate(self, done: int) -> None:
        if self.job.validate is None or not self.job.processes.first:
            return
        with self.average.in_place():
            figures = dict(self.job.validate())
            self._write({"step": done, "validation": figures})
            if self.job.keep_best is not None and figures[self.job.keep_best] > self.best:
                self.best_step, self.best = done, figures[self.job.keep_best]
                self.checkpoints.save_best(done, self.parameters)

    def _due(self, done: int, seconds: float) -> bool:
        every = self.options.checkpoint_steps
        return seconds >= 60 * self.options.checkpoint_minutes or (every > 0 and done % every == 0)

    def _save(self, done: int) -> None:
        if not self.job.processes.first:
            return
        tensors = {f"model.{name}": parameter for name, parameter in self.parameters.items()}
        tensors |= {f"adam.{name}": value for name, value in optimiser_tensors(self.optimiser, self.parameters).items()}
        tensors |= {f"average.{name}": value for name, value in self.average.tensors.items()}
        best = self.best if math.isfinite(self.best) else None
        facts = {"log_bytes": self.log.sync(), "best_step": self.best_step, "best": best}
        self.checkpoints.save(Checkpoint(done, tensors, facts))
        # The checkpoint before this one is still there, and names its own best weights.
        self.checkpoints.drop_best({self.best_step, self.saved_best})
        self.saved_best = self.best_step

    def _resume(self) -> int:
        """Restore the newest checkpoint whose log and best weights are still there; the number of steps it has."""
        processes = self.job.processes
        found = self._newest() if processes.first else None
        told = processes.send_facts({"step": found.step if found else 0, "state": found is not None})
        if found is not None:
            self._restore(found)
            log.info("going on after step %d of %d", found.step, self.steps)
        if processes.count > 1:
            self._share(told["state"])
        return int(told["step"])

    def _newest(self) -> Checkpoint | None:
        while (found := self.checkpoints.newest()) is not None:
            best_step = int(found.facts["best_step"])
            if self._has_best(best_step) and self.log.resume(int(found.facts["log_bytes"])):
                return found
            log.warning("the checkpoint of step %d has lost its log or its best weights; it is not used", found.step)
            self.checkpoints.forget(found.step)
        self.log.resume(0)
        return None

    def _share(self, resumed: bool) -> None:
        """Give the first process's state to the others."""
        processes = self.job.processes
        with torch.no_grad():
            processes.send(list(self.parameters.values()))
            processes.send(list(self.average.tensors.values()))
        if not resumed:
            return
        have = optimiser_tensors(self.optimiser, self.parameters)
        shapes = processes.send_facts({name: list(value.shape) for name, value in have.items()})
        if not processes.first:
            # AdamW's step counts are on the CPU unless it is fused on another device; restoring puts each in place.
            have = {name: torch.zeros(shape, device=processes.device) for name, shape in shapes.items()}
        processes.send([have[name] for name in shapes])
        if not processes.first:
            restore_optimiser(self.optimiser, self.parameters, have)

    def _has_best(self, step: int) -> bool:
        return step == 0 or self.checkpoints.load_best(step) is not None

    def _restore(self, found: Checkpoint) -> None:
        def part(kind: str) -> dict[str, Tensor]:
            return {k.removeprefix(kind): v for k, v in found.tensors.items() if k.startswith(kind)}

        weights = part("model.")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])
        restore_optimiser(self.optimiser, self.parameters, part("adam."))
        self.average.restore(part("average."))
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

    def _diverged(self, step: int, prepared: Prepared, norm: float) -> TrainingError:
        path = self.job.scratch / f"diverged-step-{step + 1:08d}.npz"
        if self.job.processes.first:
            save_batch(path, self.job.rows, self.order.batch(step), prepared.batch)
        return TrainingError(
            f"step {step + 1} of {self.steps}: loss {self.loss}, gradient norm {norm}; the batch is in {path}, its "
            "rows' caption_ids among it. Lower learning_rate or clip_norm, or use precision: fp32"
        )

    def _identity(self) -> str:
        """Of the run, while its weights are still those that it starts from."""
        shapes = {name: list(parameter.shape) for name, parameter in self.parameters.items()}
        pairs = [[pair.name, pair.weight] for pair in self.job.pairs]
        anchor = [self.job.distil, self.job.l2_sp]
        run = [shapes, pairs, meaning(self.options), anchor, self.job.mask_duplicates, self.job.keep_best]
        run += [weights_digest(self.job.clip.model), data_digest(self.job.rows, self.job.image_keys)]
        return hashlib.blake2b(json.dumps(run, sort_keys=True).encode(), digest_size=16).hexdigest()


def _flat(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """A log line as names such as ``losses/image~paraphrase_2`` with figures."""
    found: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}/")
        elif name != "step":
            found[prefix + name] = float(value)
    return found
