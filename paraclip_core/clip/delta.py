"""A tuned text tower as its difference from the base, in int8: one small file beside a base that others have already.

Training moves every weight, but decay alone moves the embeddings of tokens that no caption holds, all by one factor. So
a matrix W of the base becomes (1 + c) W + Q · s, with a factor c for the matrix, int8 rows Q and a step s for each row.
Rows whose remainder is below half the matrix's largest step are left out. Vectors and scalars are kept whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from paraclip_core.clip.model import ClipModel, image_tower_hash, preprocess_hash, weights_hash
from paraclip_core.errors import ModelError, one_line
from paraclip_core.tensor_file import write_tensors

__all__ = ["DELTA_FILE", "DeltaFacts", "apply_delta", "delta_facts", "save_delta"]

DELTA_FILE = "text_delta.safetensors"
FORMAT = "paraclip text delta 1"
IMAGE = "visual."
LEVELS = 127
EXPECTED = "expected a file that `paraclip export MODEL FOLDER --delta` wrote"

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class DeltaFacts:
    """What the file's metadata says."""

    base_weights: str
    """:func:`paraclip_core.clip.model.weights_hash` of the base."""
    image_tower: str
    """:func:`paraclip_core.clip.model.image_tower_hash` of both models."""
    weights: str
    """Hash of base and delta together."""
    largest_error: float
    """No weight is further from the tuned model's."""
    relative_error: float
    """Length of all errors by the length of the whole change."""
    factors: Mapping[str, float]
    """c of each matrix."""


def save_delta(base: ClipModel, tuned: ClipModel, path: Path) -> DeltaFacts:
    """Write what must be added to `base`; `base` itself becomes the model that :func:`apply_delta` gives.

    Raises:
        ModelError: the models differ in more than the text tower's weights.
        OSError: the file cannot be written.
    """
    hashes = {"image_tower": _common_tower(base, tuned), "base_weights": weights_hash(base)}
    before, after = base.model.state_dict(), tuned.model.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    factors: dict[str, float] = {}
    restored: dict[str, torch.Tensor] = {}
    largest = error = change = 0.0
    for name in sorted(name for name in before if not torch.equal(before[name], after[name])):
        old, new = (tensor.detach().cpu() for tensor in (before[name], after[name]))
        if old.ndim < 2 or old.dtype != torch.float32:
            tensors[f"{name}:whole"] = restored[name] = new.contiguous().clone()
            continue
        parts, factors[name] = _pack(_matrix(old), _matrix(new))
        tensors |= {f"{name}:{part}": torch.from_numpy(values) for part, values in parts.items()}
        total = _unpack(_matrix(old), factors[name], parts)
        restored[name] = torch.from_numpy(total).reshape(old.shape)
        off = np.abs(total.astype(np.float64) - _matrix(new))
        largest = max(largest, float(off.max()))
        error += float((off**2).sum())
        change += float(((_matrix(new).astype(np.float64) - _matrix(old)) ** 2).sum())
    base.model.load_state_dict(restored, strict=False)
    relative = (error / change) ** 0.5 if change else 0.0
    facts = DeltaFacts(**hashes, weights=weights_hash(base), largest_error=largest, relative_error=relative,
                       factors=factors)  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, path, {"format": FORMAT, "delta": json.dumps(vars(facts), sort_keys=True)})
    return facts


def delta_facts(path: Path) -> DeltaFacts:
    """The metadata of a delta.

    Raises:
        ModelError: the file is absent or damaged, or is no delta.
    """
    return _read(path)[0]


def apply_delta(base: ClipModel, path: Path) -> DeltaFacts:
    """Add a delta to its base; where it fails, `base` may be changed already.

    Raises:
        ModelError: the file is damaged, is no delta, or belongs to another base.
    """
    facts, tensors = _read(path)
    own = weights_hash(base)
    if own != facts.base_weights:
        towers = "the image tower is the same" if image_tower_hash(base) == facts.image_tower else "image towers differ"
        raise ModelError(
            f"{path} belongs to another base: expected weights {facts.base_weights}, but {base.reference} has {own} "
            f"({towers}); name the model that it was tuned from"
        )
    damaged = f"{path} is damaged; {EXPECTED}; fetch it again"
    try:
        own_state = base.model.state_dict()
        restored = {
            name: _restored(name, own_state[name], facts, tensors)
            for name in sorted({key.rpartition(":")[0] for key in tensors})
        }
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise ModelError(f"{damaged} ({one_line(error)})") from error
    base.model.load_state_dict(restored, strict=False)
    # The same sums give the same bits, so this finds a flipped one anywhere in the file.
    if weights_hash(base) != facts.weights:
        raise ModelError(f"{damaged} (its weights come out as {weights_hash(base)}, expected {facts.weights})")
    return facts


def _restored(name: str, old: torch.Tensor, facts: DeltaFacts, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if name.startswith(IMAGE):
        raise ValueError(f"it holds {name} of the image tower")
    if f"{name}:whole" in tensors:
        whole = tensors[f"{name}:whole"]
        if whole.shape != old.shape or whole.dtype != old.dtype:
            raise ValueError(f"{name} has shape {tuple(whole.shape)}, expected {tuple(old.shape)}")
        return whole
    parts = {part: tensors[f"{name}:{part}"].numpy() for part in ("rows", "values", "steps")}
    return torch.from_numpy(_unpack(_matrix(old), facts.factors[name], parts)).reshape(old.shape)


def _common_tower(base: ClipModel, tuned: ClipModel) -> str:
    """The hash of the image tower of two models that differ in the text tower's weights alone."""
    both = f"{tuned.reference} cannot be a delta to {base.reference}"
    tower = image_tower_hash(base)
    if tower != image_tower_hash(tuned) or preprocess_hash(base) != preprocess_hash(tuned):
        raise ModelError(
            f"{both}: their image towers or preprocessings differ, and a delta holds the text tower alone; give as "
            "--base the model that it was tuned from"
        )
    shapes = [{name: (each.shape, each.dtype) for name, each in clip.model.state_dict().items()}
              for clip in (base, tuned)]  # fmt: skip
    if base.model_cfg != tuned.model_cfg or shapes[0] != shapes[1]:
        raise ModelError(f"{both}: their architectures differ; give as --base the model that it was tuned from")
    return tower


def _matrix(tensor: torch.Tensor) -> Matrix:
    return tensor.detach().cpu().reshape(tensor.shape[0], -1).numpy()


def _pack(old: Matrix, new: Matrix) -> tuple[dict[str, np.ndarray], float]:
    """Int8 `values` [k, columns] and float32 `steps` [k] of the k `rows` (int32) that the factor does not explain."""
    change = new.astype(np.float64) - old
    length = (old.astype(np.float64) ** 2).sum(axis=1)
    # Rows that decay alone moved share one ratio, and are most of an embedding's.
    factor = float(np.median((change * old).sum(axis=1) / np.where(length > 0, length, 1)))
    rest = new.astype(np.float64) - _scaled(old, factor)
    largest = np.abs(rest).max(axis=1)
    rows = np.flatnonzero(largest > largest.max() / LEVELS / 2).astype(np.int32)
    steps = (largest[rows] / LEVELS).astype(np.float32)
    values = np.rint(rest[rows] / steps[:, None]).clip(-LEVELS, LEVELS).astype(np.int8)
    return {"rows": rows, "values": values, "steps": steps}, factor


def _unpack(old: Matrix, factor: float, parts: Mapping[str, np.ndarray]) -> Matrix:
    """float32 sums in one order: the same bits on every machine."""
    total = _scaled(old, factor)
    total[parts["rows"]] += parts["values"].astype(np.float32) * parts["steps"][:, None]
    return total


def _scaled(old: Matrix, factor: float) -> Matrix:
    return old * np.float32(1 + factor)


def _read(path: Path) -> tuple[DeltaFacts, dict[str, torch.Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            stored: Any = file
            metadata = dict(stored.metadata() or {})
            tensors = {name: stored.get_tensor(name) for name in list(stored.keys())}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is no safetensors file, or is damaged: {one_line(error)}; {EXPECTED}") from error
    if metadata.get("format") != FORMAT:
        raise ModelError(
            f"{path} is no delta: its format is {metadata.get('format')!r}, expected {FORMAT!r}; {EXPECTED}"
        )
    try:
        return DeltaFacts(**json.loads(metadata["delta"])), tensors
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(f"{path} is damaged in its metadata: {one_line(error)}; {EXPECTED}; fetch it again") from error
