"""A training run's checkpoints, verified to be complete, undamaged and of the same run.

A checkpoint is one safetensors file, ``step-00000120.safetensors``, renamed into place. Its header holds the run's
state and a digest over the state and all tensors. The newest two are kept, so that one may be lost. Runs are
distinguished by their identity, a digest of base and data.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from paraclip_core.clip.model import add_tensors
from paraclip_core.errors import TrainingError
from paraclip_core.tensor_file import remove_draft, write_tensors

log = logging.getLogger(__name__)

KEEP = 2
"""Number of checkpoints to keep."""


class CheckpointFolder:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, identity: str) -> None:
        """Keep the newest checkpoints of the run `identity` in `folder`."""
        self._folder, self._identity = folder, identity

    def save(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write a checkpoint after `state["step"]` steps, with a JSON-ready state, and remove the oldest ones."""
        on_cpu = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        meta = {"identity": self._identity, "state": dict(state)}
        header = {"paraclip": json.dumps({**meta, "digest": _digest(meta, on_cpu)}, sort_keys=True)}
        self._folder.mkdir(parents=True, exist_ok=True)
        write_tensors(on_cpu, self._path(state["step"]), header)
        for step in self._steps()[:-KEEP]:
            self.delete(step)

    def sound(self) -> Iterator[dict[str, Any]]:
        """States of the undamaged checkpoints, newest first; damaged ones are reported and removed."""
        for draft in self._folder.glob(".*.tmp"):  # of a run that was killed while writing
            remove_draft(draft)
        for step in reversed(self._steps()):
            try:
                meta, _ = self._read(step)
            except ValueError as error:
                log.warning("checkpoint %s is damaged (%s); the one before it is used", self._path(step), error)
                self.delete(step)
                continue
            if meta["identity"] != self._identity:
                raise TrainingError(
                    f"{self._path(step)} belongs to another run (its model, data or options differ); "
                    f"delete {self._folder} to start again"
                )
            yield meta["state"]

    def load(self, step: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """State and tensors of an undamaged checkpoint."""
        meta, tensors = self._read(step)
        return meta["state"], tensors

    def delete(self, step: int) -> None:
        """Remove the checkpoint of this step."""
        self._path(step).unlink(missing_ok=True)

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}.safetensors"

    def _steps(self) -> list[int]:
        return sorted(int(path.stem.partition("-")[2]) for path in self._folder.glob("step-*.safetensors"))

    def _read(self, step: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Header and tensors; raises ValueError for a damaged file."""
        path = self._path(step)
        try:
            with safe_open(path, "pt") as file:
                meta = json.loads((file.metadata() or {})["paraclip"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            sound = meta.pop("digest") == _digest(meta, tensors)
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(str(error)) from error
        if not sound:
            raise ValueError("its digest differs")
        return meta, tensors


def _digest(meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(json.dumps(meta, sort_keys=True).encode(), digest_size=16)
    add_tensors(digest, tensors)
    return digest.hexdigest()
