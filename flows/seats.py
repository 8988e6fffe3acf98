"""What a stage computes on: this machine's CPU cores, or its GPUs. No two stages of a run take the same at once."""

from __future__ import annotations

from collections.abc import Sequence

from paraclip.tasks.run.run import Run, Stage
from paraclip.tasks.stages.paraphrase import STEPS
from paraclip_core.paraphrase.engines.vllm import visible_gpus

CPU = "cpu"
"""The seat of all CPU cores."""


class Seats:
    """The seats of one machine: its CPU cores are one, each of its GPUs is another."""

    def __init__(self, gpus: int | None = None) -> None:
        """`gpus` is their number; None counts them."""
        count = len(visible_gpus()) if gpus is None else gpus
        self._gpus = tuple(f"cuda:{number}" for number in range(count))
        self._taken: set[str] = set()

    def take(self, stage: Stage, run: Run) -> tuple[str, ...] | None:
        """Take the seats of a stage, none for one that computes elsewhere; None where it has to wait."""
        seats, count = self._choice(stage, run)
        free = [seat for seat in seats if seat not in self._taken][:count]
        if len(free) < count:
            return None
        self._taken.update(free)
        return tuple(free)

    def leave(self, seats: Sequence[str]) -> None:
        """Give back what was taken."""
        self._taken.difference_update(seats)

    def device(self, seats: Sequence[str], device: str) -> str:
        """The `run.device` of a stage on these seats: its GPU where `auto` would have every stage take the first."""
        chooses = device == "auto" and len(self._gpus) > 1 and len(seats) == 1
        return seats[0] if chooses and seats[0] != CPU else device

    def _choice(self, stage: Stage, run: Run) -> tuple[tuple[str, ...], int]:
        """Seats that a stage can take, and how many of them it does."""
        options = run.settings.run
        on_device, every = stage.pool == "gpu", stage.trains and options.processes > 1
        if stage.name in STEPS:
            facts = run.paraphraser.facts
            if not facts.local:
                return (), 0
            # Such an engine, or each shard, has a process on every GPU.
            on_device, every = facts.on_device, facts.one_process_a_machine is not None or options.shards > 1
        if not on_device or options.device == CPU:
            return (CPU,), 1
        if options.device == "auto":
            return (self._gpus, len(self._gpus) if every else 1) if self._gpus else ((CPU,), 1)
        return ("cuda:0" if options.device == "cuda" else options.device,), 1
