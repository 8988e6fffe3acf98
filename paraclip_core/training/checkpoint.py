"""What a training run leaves on disk: checkpoints that are whole or absent, and its log.

A checkpoint is one safetensors file, ``step-00000120.safetensors``, renamed into place. Its header holds the run's
state and a digest over it and all tensors. The newest two are kept, so that one may be lost. A run is told from others
by digests of its base and its data. The log's bytes do not depend on how often the run was killed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from paraclip_core.errors import FAILING, TrainingError
from paraclip_core.tensor_file import remove_draft, write_tensors
from paraclip_core.training.data import TrainingRows

log = logging.getLogger(__name__)

KEEP = 2


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

    def sound_steps(self) -> Iterator[int]:
        """Steps of the sound checkpoints, the newest first; damaged ones are reported and removed."""
        for draft in self._folder.glob(".*.tmp"):  # of a run that was killed while it wrote
            remove_draft(draft)
        for step in reversed(self._steps()):
            try:
                identity = self._read(step)[0]["identity"]
            except ValueError as error:
                log.warning("checkpoint %s is damaged (%s); the one before it is used", self._path(step), error)
                self.delete(step)
                continue
            if identity != self._identity:
                raise TrainingError(
                    f"{self._path(step)} belongs to another run (its model, data or options differ); "
                    f"delete {self._folder} to start anew"
                )
            yield step

    def load(self, step: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """State and tensors of a sound checkpoint."""
        meta, tensors = self._read(step)
        return meta["state"], tensors

    def delete(self, step: int) -> None:
        """Remove the checkpoint of this step."""
        path = self._path(step)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise TrainingError(
                f"cannot delete the old checkpoint {path}: {error.strerror}; make its folder writable and run again"
            ) from error

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}.safetensors"

    def _steps(self) -> list[int]:
        return sorted(int(path.stem.partition("-")[2]) for path in self._folder.glob("step-*.safetensors"))

    def _read(self, step: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Header and tensors; ValueError of a damaged file."""
        path = self._path(step)
        try:
            with path.open("rb"):  # safetensors hides the reason of an OSError
                pass
            with safe_open(path, "pt") as file:
                meta = json.loads((file.metadata() or {})["paraclip"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            sound = meta.pop("digest") == _digest(meta, tensors)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in FAILING:
                raise TrainingError(
                    f"cannot read the checkpoint {path}: {error.strerror}; its disk or network folder is at fault, run "
                    "again when it is fixed, or delete the file to resume from the one before it"
                ) from error
            raise ValueError(str(error)) from error
        if not sound:
            raise ValueError("its digest differs")
        return meta, tensors


def _digest(meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(json.dumps(meta, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        _add_tensor(digest, name, tensors[name])
    return digest.hexdigest()


def _add_tensor(digest: hashlib.blake2b, name: str, tensor: Tensor) -> None:
    value = tensor.detach().cpu().contiguous()
    digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
    digest.update(value.reshape(-1).view(torch.uint8).numpy().data)


def weights_digest(model: nn.Module) -> str:
    """Digest of names, dtypes, shapes and bytes of all parameters but the image tower's."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        if not name.startswith("visual."):
            _add_tensor(digest, name, parameter)
    return digest.hexdigest()


def data_digest(rows: TrainingRows, image_keys: NDArray[np.int64]) -> str:
    """Digest of the images and captions in their order, and of the number of tokens of each kind of text.

    The tokens themselves are most of the data, and are not read.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{len(rows)} {[(kind, len(tokens.values)) for kind, tokens in rows.texts.items()]};".encode())
    parts: tuple[NDArray[Any] | None, ...] = (image_keys, rows.image_rows, rows.ids, rows.starts)
    for part in parts:
        digest.update(f"{None if part is None else part.shape};".encode())
        if part is not None:
            digest.update(np.ascontiguousarray(part).reshape(-1).data)
    return digest.hexdigest()


def rounded(value: float) -> float:
    """A figure with the six significant digits of logs and manifests."""
    return float(f"{value:.6g}")


class TrainingLog:
    """JSON lines, appended step by step; a resumed run cuts the log to its checkpoint."""

    def __init__(self, path: Path) -> None:
        """Write to `path`; call :meth:`resume` first."""
        self._path = path

    def resume(self, size: int) -> bool:
        """Cut the log to its first `size` bytes; False where it has fewer, and so is lost."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            if file.tell() < size:
                return False
            file.truncate(size)
        return True

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def sync(self) -> int:
        """Flush the log to disk; its size in bytes."""
        with self._path.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()
