"""Whether an index stays valid: both models' image encoders, preprocessing and features, compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from paraclip_core.clip.encode import encode_images, encode_pixels
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.index import read_index
from paraclip_core.clip.load import load_clip
from paraclip_core.clip.model import ClipModel, image_encoder_hash, preprocess_hash
from paraclip_core.errors import InputError, ModelError

FEATURE_TOLERANCE = 2e-3
"""Tolerance for coordinates of stored unit vectors: float16 and another batch size change them by up to about 1e-3."""
SHOWN = 10


@dataclass(frozen=True)
class IndexCheck:
    """One comparison."""

    what: str
    """`image encoder`, `preprocessing`, `images` or `stored features`."""
    valid: bool
    detail: str
    differences: tuple[str, ...] = ()
    """The first ten images that differ."""


def check_encoders(base: ClipModel, tuned: ClipModel) -> list[IndexCheck]:
    """Compare the hashes of the image encoders and of their preprocessing.

    Equal weights may be used with another activation or number of heads, so features of noise must also be equal.
    """
    encoder = _compared("image encoder", image_encoder_hash(base), image_encoder_hash(tuned))
    preprocessing = _compared("preprocessing", preprocess_hash(base), preprocess_hash(tuned))
    if encoder.valid and preprocessing.valid and not np.array_equal(_noise_features(base), _noise_features(tuned)):
        detail = f"{image_encoder_hash(base)} in both, but the models compute differently with these weights"
        encoder = IndexCheck("image encoder", False, detail)
    return [encoder, preprocessing]


def check_images(
    base: ClipModel, tuned: ClipModel, images: Sequence[Image.Image], names: Sequence[str]
) -> tuple[IndexCheck, np.ndarray]:
    """Encode images with both models and compare bit for bit; also returns the base's features, float16 [n, d]."""
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
    """Compare stored embeddings, [n, d] of any floating-point type, with computed ones, after normalizing both."""
    if stored.shape != computed.shape:
        raise ModelError(f"the stored features are {stored.shape}, but {computed.shape} were computed")
    gap = np.abs(_units(stored) - _units(computed)).max(axis=1, initial=0.0)
    wrong = ~(gap <= FEATURE_TOLERANCE)  # NaN is wrong, too
    differences = tuple(f"{names[row]}: by up to {gap[row]:.2g}" for row in np.flatnonzero(wrong)[:SHOWN])
    detail = f"{int((~wrong).sum())} of {len(wrong)} stored embeddings match the model's within {FEATURE_TOLERANCE:g}"
    return IndexCheck("stored features", not wrong.any(), detail, differences)


def _noise_features(clip: ClipModel) -> np.ndarray:
    return encode_pixels(clip, torch.randn(4, 3, *clip.image_size, generator=torch.Generator().manual_seed(0)))


def _compared(what: str, base: str, tuned: str) -> IndexCheck:
    detail = f"{base} in both" if base == tuned else f"{base} in the base, {tuned} in the tuned model"
    return IndexCheck(what, base == tuned, detail)


def _units(rows: np.ndarray) -> np.ndarray:
    wide = np.asarray(rows, np.float32)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)


def verify_index(
    base: str,
    tuned: str,
    images: Path | None = None,
    features: Path | None = None,
    sample: int = 16,
    ids: Path | None = None,
) -> list[IndexCheck]:
    """Compare two models' image encoders, preprocessing, and features of `sample` evenly spaced images.

    `features` is an index of these images, see :func:`paraclip_core.clip.index.read_index`; without `ids` its rows are
    in the order of the images' names.
    """
    first, second = load_clip(base), load_clip(tuned)
    checks = check_encoders(first, second)
    if features is not None and images is None:
        raise InputError(f"{features} cannot be checked without its images; give --images as well")
    if images is not None:
        with ImageArchive(images) as archive:
            names: Sequence[str] = sorted(archive.names())
            if not names:
                raise InputError(f"{images} has no images")
            index = None if features is None else read_index(features, ids)
            if index is not None and index.named:
                names = index.ids
            elif index is not None and len(index) != len(names):
                raise InputError(
                    f"{index.source} holds {index.features.shape}; expected one row for each of the {len(names)} "
                    "images, or the rows' names with --ids"
                )
            rows = np.unique(np.linspace(0, len(names) - 1, min(sample, len(names))).round().astype(int))
            places: list[int] = rows.tolist()
            chosen = [names[place] for place in places]
            check, computed = check_images(first, second, [archive.open(name) for name in chosen], chosen)
        checks.append(check)
        if index is not None:
            checks.append(check_features(np.asarray(index.features[rows]), computed, chosen))
    return checks
