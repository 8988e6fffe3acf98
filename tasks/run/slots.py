"""Slots: this machine's CPU cores and its GPUs, which a run's stages take exclusively."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from itertools import takewhile

from paraclip.tasks.run.run import Run, Stage

CPU = "cpu"
"""The slot of all CPU cores."""
GPU = re.compile(r"\d+|(GPU|MIG)-.+")


class Slots:
    """The slots of this machine: its CPU cores are one, each of its GPUs is another; a slot holds one stage."""

    def __init__(self, gpus: int | None = None) -> None:
        """`gpus` is the number of GPUs; None counts them."""
        count = len(visible_gpus()) if gpus is None else gpus
        self._gpus = tuple(f"cuda:{number}" for number in range(count))
        self._taken: set[str] = set()

    def take(self, stage: Stage, run: Run) -> tuple[str, ...] | None:
        """Take the slots of a stage, empty for one that computes elsewhere; None if it has to wait."""
        slots, count = self._choice(stage, run)
        free = [slot for slot in slots if slot not in self._taken][:count]
        if len(free) < count:
            return None
        self._taken.update(free)
        return tuple(free)

    def release(self, slots: Sequence[str]) -> None:
        """Release slots that were taken."""
        self._taken.difference_update(slots)

    def device(self, slots: Sequence[str], device: str) -> str:
        """The `run.device` of a stage on these slots: its own GPU, where `auto` would always mean the first one."""
        chooses = device == "auto" and len(self._gpus) > 1 and len(slots) == 1
        return slots[0] if chooses and slots[0] != CPU else device

    def _choice(self, stage: Stage, run: Run) -> tuple[tuple[str, ...], int]:
        """Slots that a stage can take, and how many of them it takes."""
        slot, device = stage.pool if stage.slots is None else stage.slots(run), run.settings.run.device
        if slot == "elsewhere":
            return (), 0
        if slot == CPU or device == CPU:
            return (CPU,), 1
        if device == "auto":
            return (self._gpus, len(self._gpus) if slot == "every gpu" else 1) if self._gpus else ((CPU,), 1)
        return ("cuda:0" if device == "cuda" else device,), 1


def visible_gpus() -> list[str]:
    """Names of the NVIDIA GPUs that this process sees, in the format of CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # CUDA ignores all GPUs from the first invalid name on, such as -1.
        return list(takewhile(GPU.fullmatch, map(str.strip, visible.split(","))))
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    # Not with torch, which takes seconds to import in a flow's process and may be built without CUDA.
    listed = subprocess.run(
        [tool, "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, check=False, timeout=60
    )
    return listed.stdout.split() if listed.returncode == 0 else []
