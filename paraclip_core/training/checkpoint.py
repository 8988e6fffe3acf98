"""What a training run leaves on disk: checkpoints that are whole or absent, and its log.

A checkpoint is one safetensors file, ``step-00000120.safetensors``, renamed into place. Its header holds the run's
facts and a digest over these and all tensors. The newest two are kept, so that one may be lost. A run is told from
others by digests of its base and its data. The log's bytes do not depend on how often the run was killed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Checkpoint:
    """State after `step` steps."""

    step: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    """JSON-ready facts of the run."""


class CheckpointFolder:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, identity: str) -> None:
        """Keep the newest checkpoints of the run `identity` in `folder`."""
        self._folder, self._identity = folder, identity

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and remove the oldest ones."""
        facts = {"step": checkpoint.step, "identity": self._identity, "facts": dict(checkpoint.facts)}
        self._write(self._path("step", checkpoint.step), checkpoint.tensors, facts)
        for path in self._paths("step")[:-KEEP]:
            _delete(path)

    def newest(self) -> Checkpoint | None:
        """The newest sound checkpoint; damaged ones are reported and removed. None where there is none."""
        for leftover in self._folder.glob(".*.tmp"):  # of a run that was killed while it wrote
            remove_draft(leftover)
        for path in reversed(self._paths("step")):
            content = self._read(path)
            if content is None:
                _delete(path)
                continue
            meta, tensors = content
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
        """Keep the weights with the best validation so far; a checkpoint's facts name their step."""
        self._write(self._path("best", step), tensors, {"step": step, "identity": self._identity, "facts": {}})

    def load_best(self, step: int) -> Mapping[str, Tensor] | None:
        """The weights kept by :meth:`save_best`, None where they are gone or damaged."""
        path = self._path("best", step)
        content = self._read(path) if path.exists() else None
        return None if content is None else content[1]

    def drop_best(self, keep: set[int]) -> None:
        """Remove the best weights of every other step."""
        for path in self._paths("best"):
            if int(path.stem.split("-")[1]) not in keep:
                _delete(path)

    def _path(self, kind: str, step: int) -> Path:
        return self._folder / f"{kind}-{step:08d}.safetensors"

    def _paths(self, kind: str) -> list[Path]:
        return sorted(self._folder.glob(f"{kind}-*.safetensors"))

    def _write(self, path: Path, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
        on_cpu = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        header = {"paraclip": json.dumps({**meta, "digest": _digest(meta, on_cpu)}, sort_keys=True)}
        self._folder.mkdir(parents=True, exist_ok=True)
        write_tensors(on_cpu, path, header)

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        try:
            with path.open("rb"):  # safetensors hides the reason of an OSError
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
        _add_tensor(digest, name, tensors[name])
    return digest.hexdigest()


def _add_tensor(digest: hashlib.blake2b, name: str, tensor: Tensor) -> None:
    value = tensor.detach().cpu().contiguous()
    digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
    digest.update(value.reshape(-1).view(torch.uint8).numpy().data)


def weights_digest(model: nn.Module) -> str:
    """Digest of the names, shapes and bytes of all parameters but the image tower's."""
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
