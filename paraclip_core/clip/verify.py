"""Whether two models give the same image embeddings: by weights, by preprocessing, by trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from paraclip_core.clip.encode import encode_images, encode_pixels
from paraclip_core.clip.model import ClipModel, image_tower_hash, preprocess_hash
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
    """The first ten images that differ."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"differences": list(self.differences)}


def check_towers(base: ClipModel, tuned: ClipModel) -> list[IndexCheck]:
    """Compare the hashes of image towers and of preprocessing.

    Equal weights may be used with another activation or number of heads, so features of noise must be equal, too.
    """
    tower = _compared("image tower", image_tower_hash(base), image_tower_hash(tuned))
    preprocessing = _compared("preprocessing", preprocess_hash(base), preprocess_hash(tuned))
    if tower.valid and preprocessing.valid and not np.array_equal(_noise_features(base), _noise_features(tuned)):
        detail = f"{image_tower_hash(base)} in both, but the models compute otherwise with these weights"
        tower = IndexCheck("image tower", False, detail)
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


def _compared(what: str, base: str, tuned: str) -> IndexCheck:
    detail = f"{base} in both" if base == tuned else f"{base} in the base, {tuned} in the tuned model"
    return IndexCheck(what, base == tuned, detail)


def _units(rows: np.ndarray) -> np.ndarray:
    wide = np.asarray(rows, np.float32)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
