"""Checkpoints that are whole or absent; damage to one is detected.

A checkpoint is one safetensors file, ``step-00000120.safetensors``, written beside its place and renamed. Its header
holds the run's facts and a digest over these and all tensors. The newest two are kept, so that one may be lost.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from paraclip_core.errors import FAILING, TrainingError
from paraclip_core.tensor_file import remove_draft, write_tensors

__all__ = ["Checkpoint", "CheckpointFolder"]

log = logging.getLogger(__name__)

KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """State after `step` steps."""

    step: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    """What else is to be remembered, JSON-ready."""


class CheckpointFolder:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, identity: str) -> None:
        """Keep the newest ones in `folder`; `identity` says which run they belong to."""
        self._folder, self._identity = folder, identity

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and remove the oldest ones.

        Raises:
            TrainingError: the disk is full or read-only, or an old one cannot be deleted.
        """
        facts = {"step": checkpoint.step, "identity": self._identity, "facts": dict(checkpoint.facts)}
        self._write(self._path("step", checkpoint.step), checkpoint.tensors, facts)
        for path in self._found("step")[:-KEEP]:
            _delete(path)

    def newest(self) -> Checkpoint | None:
        """The newest sound checkpoint; damaged ones are reported and removed. None where there is none.

        Raises:
            TrainingError: it belongs to another run, or the disk is at fault.
        """
        for leftover in self._folder.glob(".*.tmp"):  # of a run that was killed while it wrote
            remove_draft(leftover)
        for path in reversed(self._found("step")):
            found = self._read(path)
            if found is None:
                _delete(path)
                continue
            meta, tensors = found
            if meta["identity"] != self._identity:
                raise TrainingError(
                    f"{path} belongs to another run (its model, data or options differ); "
                    f"delete {self._folder} to start anew"
                )
            return Checkpoint(int(meta["step"]), tensors, meta["facts"])
        return None

    def forget(self, step: int) -> None:
        """Remove the checkpoint of this step."""
        _delete(self._path("step", step))

    def save_best(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep the weights that validation likes best so far; a checkpoint's facts name their step."""
        self._write(self._path("best", step), tensors, {"step": step, "identity": self._identity, "facts": {}})

    def load_best(self, step: int) -> Mapping[str, Tensor] | None:
        """The weights kept by :meth:`save_best`, None where they are gone or damaged."""
        path = self._path("best", step)
        found = self._read(path) if path.exists() else None
        return None if found is None else found[1]

    def drop_best(self, keep: set[int]) -> None:
        """Remove the best weights of every other step."""
        for path in self._found("best"):
            if int(path.stem.split("-")[1]) not in keep:
                _delete(path)

    def _path(self, kind: str, step: int) -> Path:
        return self._folder / f"{kind}-{step:08d}.safetensors"

    def _found(self, kind: str) -> list[Path]:
        return sorted(self._folder.glob(f"{kind}-*.safetensors"))

    def _write(self, path: Path, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
        here = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        header = {"paraclip": json.dumps({**meta, "digest": _digest(meta, here)}, sort_keys=True)}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_tensors(here, path, header)
        except OSError as error:
            raise TrainingError(
                f"cannot write the checkpoint {path}: {error}; free some space or choose another root"
            ) from error

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        try:
            with path.open("rb"):  # for safetensors does not say why it cannot
                pass
            with safe_open(path, "pt") as file:
                meta = json.loads((file.metadata() or {})["paraclip"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if meta.pop("digest") == _digest(meta, tensors):
                return meta, tensors
            reason = "its digest differs"
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in FAILING:
                raise TrainingError(
                    f"cannot read the checkpoint {path}: {error.strerror}; its disk or network folder is at fault, run "
                    "again when it is mended, or delete the file to go on from the one before it"
                ) from error
            reason = str(error)
        log.warning("checkpoint %s is damaged (%s); going on from the one before it", path, reason)
        return None


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise TrainingError(
            f"cannot delete the old checkpoint {path}: {error.strerror}; make its folder writable and run again"
        ) from error


def _digest(meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(json.dumps(meta, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(np.ascontiguousarray(tensor.reshape(-1).view(torch.uint8).numpy()).data)
    return digest.hexdigest()
