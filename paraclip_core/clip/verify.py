"""Whether two models give the same image embeddings: by weights, by preprocessing, by trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from paraclip_core.clip.encode import encode_images, encode_pixels
from paraclip_core.clip.model import ClipModel, image_architecture, image_tower_hash, preprocess_hash
from paraclip_core.errors import ModelError

FEATURE_TOLERANCE = 2e-3
"""Tolerance of a stored unit vector's coordinate: float16 and another batch size make up to about 1e-3."""
SHOWN = 10


@dataclass(frozen=True)
class IndexCheck:
    """One comparison."""

    what: str
    """image tower, preprocessing, images or stored features."""
    valid: bool
    detail: str
    differences: tuple[str, ...] = ()
    """The first ten differences."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"differences": list(self.differences)}


def check_towers(base: ClipModel, tuned: ClipModel) -> list[IndexCheck]:
    """Compare the hashes of image towers and of preprocessing; the differences name tensors and options.

    Equal weights may be used with another activation or number of heads, so features of noise must be equal, too.
    """
    towers = image_tower_hash(base), image_tower_hash(tuned)
    processing = preprocess_hash(base), preprocess_hash(tuned)
    tensors = _tensor_differences(base, tuned) if towers[0] != towers[1] else []
    options = [
        f"{name}: {base.preprocess_cfg.get(name)!r} and {tuned.preprocess_cfg.get(name)!r}"
        for name in sorted({*base.preprocess_cfg, *tuned.preprocess_cfg})
        if base.preprocess_cfg.get(name) != tuned.preprocess_cfg.get(name)
    ]
    tower, preprocessing = _compared("image tower", towers, tensors), _compared("preprocessing", processing, options)
    if tower.valid and preprocessing.valid and not np.array_equal(_noise_features(base), _noise_features(tuned)):
        detail = f"{towers[0]} in both, but the models compute otherwise with these weights"
        tower = IndexCheck("image tower", False, detail, tuple(_architecture_differences(base, tuned)))
    return [tower, preprocessing]


def check_images(
    base: ClipModel, tuned: ClipModel, images: Sequence[Image.Image], names: Sequence[str]
) -> tuple[IndexCheck, np.ndarray]:
    """Encode images with both models and compare bit for bit.

    Returns:
        The outcome, and the base's features: float16 [n, embed_dim].
    """
    first, second = encode_images(base, images), encode_images(tuned, images)
    if first.shape != second.shape:
        detail = f"the models give {first.shape[1]} and {second.shape[1]} dimensions"
        return IndexCheck("images", False, detail), first
    equal = (first.view(np.uint16) == second.view(np.uint16)).all(axis=1)
    gap = np.abs(first.astype(np.float32) - second.astype(np.float32)).max(axis=1, initial=0.0)
    differences = tuple(f"{names[row]}: by up to {gap[row]:.2g}" for row in np.flatnonzero(~equal)[:SHOWN])
    detail = f"{int(equal.sum())} of {len(equal)} images have the same embedding, bit for bit"
    return IndexCheck("images", bool(equal.all()), detail, differences), first


def check_features(stored: np.ndarray, computed: np.ndarray, names: Sequence[str]) -> IndexCheck:
    """Compare stored embeddings with computed ones; both are brought to length 1.

    Args:
        stored: [n, d] of any floating-point type.
        computed: [n, d], of the same images.
        names: of the images.
    """
    if stored.shape != computed.shape:
        raise ModelError(f"the stored features are {stored.shape}, but {computed.shape} were computed")
    gap = np.abs(_units(stored) - _units(computed)).max(axis=1, initial=0.0)
    wrong = ~(gap <= FEATURE_TOLERANCE)  # NaN is wrong, too
    differences = tuple(f"{names[row]}: by up to {gap[row]:.2g}" for row in np.flatnonzero(wrong)[:SHOWN])
    detail = f"{int((~wrong).sum())} of {len(wrong)} stored embeddings are the model's within {FEATURE_TOLERANCE:g}"
    return IndexCheck("stored features", not wrong.any(), detail, differences)


def _noise_features(clip: ClipModel) -> np.ndarray:
    size = clip.preprocess_cfg["size"]
    shape = (size, size) if isinstance(size, int) else tuple(size)
    return encode_pixels(clip, torch.randn(4, 3, *shape, generator=torch.Generator().manual_seed(0)))


def _architecture_differences(base: ClipModel, tuned: ClipModel) -> list[str]:
    first, second = image_architecture(base), image_architecture(tuned)
    names = sorted({*first, *second})
    return [f"{n}: {first.get(n)!r} and {second.get(n)!r}" for n in names if first.get(n) != second.get(n)]


def _compared(what: str, hashes: tuple[str, str], differences: list[str]) -> IndexCheck:
    valid = hashes[0] == hashes[1]
    detail = f"{hashes[0]} in both" if valid else f"{hashes[0]} in the base, {hashes[1]} in the tuned model"
    more = len(differences) - SHOWN
    shown = (*differences[:SHOWN], *([f"and {more} more"] if more > 0 else []))
    return IndexCheck(what, valid, detail, shown)


def _tensor_differences(base: ClipModel, tuned: ClipModel) -> list[str]:
    first, second = (_tensors(clip) for clip in (base, tuned))
    differences = []
    for name in sorted({*first, *second}):
        if name not in first or name not in second:
            differences.append(f"{name}: only in the {'tuned model' if name not in first else 'base'}")
        elif first[name].shape != second[name].shape:
            differences.append(f"{name}: {tuple(first[name].shape)} and {tuple(second[name].shape)}")
        elif not _same(first[name], second[name]):
            gap = (first[name].double() - second[name].double()).abs().max()
            differences.append(f"{name}: by up to {float(gap):.2g}")
    return differences


def _tensors(clip: ClipModel) -> dict[str, torch.Tensor]:
    tensors = {**dict(clip.visual.named_parameters()), **dict(clip.visual.named_buffers())}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    # As the hash sees them: -0.0 is not 0.0.
    bits = (tensor.reshape(-1).view(torch.uint8) for tensor in (first, second))
    return first.dtype == second.dtype and torch.equal(*bits)


def _units(rows: np.ndarray) -> np.ndarray:
    wide = np.asarray(rows, np.float32)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
