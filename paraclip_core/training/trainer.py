"""The training loop: text tower and logit scale against stored image features.

A step is a pure function of its number and the state before it, and a checkpoint holds the whole state: a run that was
killed and resumed gives the same bytes as one that was not, on the same number of threads.
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

from paraclip_core.clip.model import ClipModel, freeze_image_tower
from paraclip_core.clip.towers import text_tower
from paraclip_core.config import OptimizerOptions, RankOptions, meaning
from paraclip_core.errors import TrainingError
from paraclip_core.progress import Progress, Throughput, silent
from paraclip_core.training.batches import IMAGE, DataOrder, ImageFeatures, Prepared, prefetch_batches, save_batch
from paraclip_core.training.checkpoint import (
    Checkpoint,
    CheckpointFolder,
    TrainingLog,
    data_digest,
    rounded,
    weights_digest,
)
from paraclip_core.training.data import TrainingRows
from paraclip_core.training.distributed import ALONE, Processes
from paraclip_core.training.losses import TEXTS, Anchor, Objective, Pair
from paraclip_core.training.memory import deterministic, keep_freed_memory, memory_for_batches, sigterm_noticed
from paraclip_core.training.optimizer import (
    build_optimizer,
    clamp_scale,
    learning_rate,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rate,
    trained_parameters,
)
from paraclip_core.training.ranks import gallery_of
from paraclip_core.training.trackers import Trackers

log = logging.getLogger(__name__)

CLIP_NORM = 1.0
"""Largest gradient norm."""
CHECKPOINT_SECONDS = 60.0
"""Time between two checkpoints."""


@dataclass(frozen=True)
class TrainingJob:
    """Everything that a training run needs."""

    clip: ClipModel
    """The model, on its device; parameters of its text tower that take gradients are trained in place."""
    rows: TrainingRows
    features: ImageFeatures
    """Stored features of the images, float16 [N, d]."""
    image_keys: NDArray[np.int64]
    """Equal for equal images, [N]."""
    pairs: tuple[Pair, ...]
    options: OptimizerOptions
    scratch: Path
    """Folder of the checkpoints."""
    log_path: Path
    """The training log, JSON lines."""
    validate: Callable[[], Mapping[str, float]] | None = None
    """Measures the model as it is, once an epoch, last after the last step."""
    keep_best: str | None = None
    """The figure of `validate` that chooses the weights; None: the last ones."""
    distil: float = 0.0
    """Weight of the distance to the base's caption embeddings, see :mod:`paraclip_core.training.losses`."""
    ranks: RankOptions = field(default_factory=RankOptions)
    """Rank consistency with the base, see :mod:`paraclip_core.training.ranks`."""
    trackers: Trackers = field(default_factory=Trackers)
    """They get the figures of every step and validation, and are closed at the end."""
    processes: Processes = ALONE
    """The processes that train together, all with the same job; the first one writes."""


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended."""

    steps: int
    batch_size: int
    loss: float
    """Loss of this process's last step; NaN without one."""
    best_step: int
    """Step of the returned weights."""
    best: float | None
    """The figure that chose them, None for the last ones."""
    samples_per_second: float


def train(job: TrainingJob, progress: Progress = silent) -> TrainingResult:
    """Train, going on from the newest checkpoint in the job's scratch folder."""
    keep_freed_memory()
    try:
        with deterministic():
            return _Run(job).run(progress)
    finally:
        job.trackers.close()


class _Run:
    """State of one run between its steps."""

    def __init__(self, job: TrainingJob) -> None:
        self.job, self.options, self.device = job, job.options, job.clip.device
        freeze_image_tower(job.clip)
        self.order = DataOrder(len(job.rows), job.options.batch_size, job.options.seed, job.rows.starts)
        self.steps = self.order.steps(job.options.epochs)
        self.checks = max(1, round(job.options.epochs))
        self.kinds = tuple(dict.fromkeys(k for pair in job.pairs for k in (pair.first, pair.second) if k != IMAGE))
        needed = TEXTS if job.ranks.weight else ("caption",) if job.distil else ()
        self.kinds = tuple(dict.fromkeys((*self.kinds, *needed)))
        self.parameters = trained_parameters(job.clip.model)
        self.logit_scale = job.clip.model.get_parameter("logit_scale")
        self.optimizer = build_optimizer(job.clip.model, job.options.weight_decay)
        self.objective = Objective(
            job.clip,
            job.pairs,
            job.options.precision,
            job.options.memory_gib or memory_for_batches(self.device, job.processes.count),
            Anchor(job.clip, job.distil, job.ranks),
            job.processes,
        )
        self.checkpoints = CheckpointFolder(job.scratch, self._identity())
        self.log = TrainingLog(job.log_path)
        self.best_step, self.best = 0, -math.inf
        self.saved_best = 0
        self.loss = math.nan

    def run(self, progress: Progress) -> TrainingResult:
        first = self._resume()
        self.job.trackers.begin(first)
        start = time.monotonic()
        self.job.clip.model.train()
        self._loop(first, progress)
        seconds = time.monotonic() - start
        self._take_best()
        self.job.clip.model.eval()
        return TrainingResult(
            steps=self.steps,
            batch_size=self.order.batch_size,
            loss=self.loss,
            best_step=self.best_step or self.steps,
            best=self.best if math.isfinite(self.best) else None,
            samples_per_second=round((self.steps - first) * self.order.batch_size / max(seconds, 1e-9), 1),
        )

    def _loop(self, first: int, progress: Progress) -> None:
        job, processes, steps = self.job, self.job.processes, range(first, self.steps)
        ranks, seed = job.ranks, self.options.seed
        gallery = gallery_of(job.rows.image_rows, ranks.bank, seed) if ranks.weight else None
        # Only a packed tower's arithmetic is counted.
        packed = text_tower(job.clip).packed
        dtype = torch.bfloat16 if self.options.precision == "bf16" else torch.float32
        rate = packed.matmul_rate(dtype) * processes.count if packed is not None else 0.0
        listener = progress if processes.first else silent
        throughput = Throughput(listener, self.steps, first, self.order.batch_size, rate)
        saved = time.monotonic()
        with (
            sigterm_noticed() as terminated,
            prefetch_batches(job.rows, self.order, self.kinds, job.features, job.image_keys, steps, gallery) as batches,
        ):
            for step in steps:
                with throughput.waiting():
                    prepared = next(batches)
                self._step(step, prepared)
                if packed is not None:
                    throughput.add_flops(packed.step_flops(prepared.tokens))
                done = step + 1
                if done * self.checks // self.steps > step * self.checks // self.steps:
                    self._validate(done)
                stopping = processes.any(terminated())
                if done == self.steps or stopping or self._due(done, time.monotonic() - saved):
                    self._save(done)
                    saved = time.monotonic()
                if stopping:
                    raise TrainingError(f"stopped by SIGTERM after step {done} of {self.steps}; run again to go on")
                throughput.report(done, loss=rounded(self.loss))

    def _step(self, step: int, prepared: Prepared) -> None:
        options = self.options
        rate = learning_rate(step, self.steps, options.learning_rate, options.warmup)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        loss, parts = self.objective.gradients(prepared, options.seed * 1_000_003 + step)
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), CLIP_NORM)
        self.loss = float(loss)
        if not math.isfinite(self.loss) or not math.isfinite(float(norm)):
            raise self._diverged(step, prepared, float(norm))
        self.optimizer.step()
        if self.logit_scale.requires_grad:
            clamp_scale(self.logit_scale)
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
        figures = dict(self.job.validate())
        self._write({"step": done, "validation": figures})
        if self.job.keep_best is not None and figures[self.job.keep_best] > self.best:
            self.best_step, self.best = done, figures[self.job.keep_best]
            self.checkpoints.save_best(done, self.parameters)

    def _due(self, done: int, seconds: float) -> bool:
        every = self.options.checkpoint_steps
        return seconds >= CHECKPOINT_SECONDS or (every > 0 and done % every == 0)

    def _save(self, done: int) -> None:
        if not self.job.processes.first:
            return
        tensors = {f"model.{name}": parameter for name, parameter in self.parameters.items()}
        tensors |= {f"adam.{name}": value for name, value in optimizer_tensors(self.optimizer, self.parameters).items()}
        best = self.best if math.isfinite(self.best) else None
        facts = {"log_bytes": self.log.sync(), "best_step": self.best_step, "best": best}
        self.checkpoints.save(Checkpoint(done, tensors, facts))
        # The checkpoint before this one is still there, and names its own best weights.
        self.checkpoints.drop_best({self.best_step, self.saved_best})
        self.saved_best = self.best_step

    def _resume(self) -> int:
        """Restore the newest checkpoint whose log and best weights are there; returns its number of steps."""
        processes = self.job.processes
        checkpoint = self._newest() if processes.first else None
        step = processes.broadcast_facts({"step": checkpoint.step if checkpoint else 0})["step"]
        if checkpoint is not None:
            self._restore(checkpoint)
            log.info("going on after step %d of %d", step, self.steps)
        if processes.count > 1:
            self._share(resumed=step > 0)
        return step

    def _newest(self) -> Checkpoint | None:
        while (checkpoint := self.checkpoints.newest()) is not None:
            best_step = int(checkpoint.facts["best_step"])
            has_best = best_step == 0 or self.checkpoints.load_best(best_step) is not None
            if has_best and self.log.resume(int(checkpoint.facts["log_bytes"])):
                return checkpoint
            log.warning(
                "the checkpoint of step %d has lost its log or its best weights; it is not used", checkpoint.step
            )
            self.checkpoints.forget(checkpoint.step)
        self.log.resume(0)
        return None

    def _share(self, resumed: bool) -> None:
        """Give the first process's state to the others."""
        processes = self.job.processes
        with torch.no_grad():
            processes.broadcast(list(self.parameters.values()))
        if not resumed:
            return
        tensors = optimizer_tensors(self.optimizer, self.parameters)
        shapes = processes.broadcast_facts({name: list(value.shape) for name, value in tensors.items()})
        if not processes.first:
            # AdamW's step counts are on the CPU unless it is fused on another device; restoring puts each in place.
            tensors = {name: torch.zeros(shape, device=processes.device) for name, shape in shapes.items()}
        processes.broadcast([tensors[name] for name in shapes])
        if not processes.first:
            restore_optimizer(self.optimizer, self.parameters, tensors)

    def _restore(self, checkpoint: Checkpoint) -> None:
        def part(kind: str) -> dict[str, Tensor]:
            return {k.removeprefix(kind): v for k, v in checkpoint.tensors.items() if k.startswith(kind)}

        self._copy_in(part("model."))
        restore_optimizer(self.optimizer, self.parameters, part("adam."))
        best = checkpoint.facts["best"]
        self.best_step = self.saved_best = int(checkpoint.facts["best_step"])
        self.best = -math.inf if best is None else float(best)

    @torch.no_grad()
    def _copy_in(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])

    def _take_best(self) -> None:
        if self.best_step in (0, self.steps):
            return
        weights = self.checkpoints.load_best(self.best_step)
        if weights is None:
            raise TrainingError(
                f"the best weights (step {self.best_step}) are gone from {self.job.scratch}; delete it and run again"
            )
        self._copy_in(weights)

    def _diverged(self, step: int, prepared: Prepared, norm: float) -> TrainingError:
        path = self.job.scratch / f"diverged-step-{step + 1:08d}.npz"
        if self.job.processes.first:
            save_batch(path, self.job.rows, self.order.batch(step), prepared.batch)
        return TrainingError(
            f"step {step + 1} of {self.steps}: loss {self.loss}, gradient norm {norm}; the batch is in {path}, its "
            "rows' caption_ids among it. Lower learning_rate, or use precision: fp32"
        )

    def _identity(self) -> str:
        """Digest of the run, computed while the weights are those of the start."""
        shapes = {name: list(parameter.shape) for name, parameter in self.parameters.items()}
        pairs = [[pair.name, pair.weight] for pair in self.job.pairs]
        anchor = [self.job.distil, *([meaning(self.job.ranks)] if self.job.ranks.weight else [])]
        run = [shapes, pairs, meaning(self.options), anchor, self.job.keep_best]
        run += [weights_digest(self.job.clip.model), data_digest(self.job.rows, self.job.image_keys)]
        return hashlib.blake2b(json.dumps(run, sort_keys=True).encode(), digest_size=16).hexdigest()


def _flat(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """A log line's figures under names such as ``losses/image~paraphrase_2``."""
    figures: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            figures |= _flat(value, f"{prefix}{name}/")
        elif name != "step":
            figures[prefix + name] = float(value)
    return figures
