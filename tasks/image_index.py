"""What a stored image index is good for: ranked images for a query, and the proof that it stays valid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.load import load_clip
from paraclip_core.clip.model import pick_device
from paraclip_core.clip.search import search as nearest_images
from paraclip_core.clip.verify import IndexCheck, check_features, check_images, check_towers
from paraclip_core.errors import InputError
from storage.features import FeatureStore
from storage.parquet import iter_batches
from tasks.models import FoundModel

__all__ = ["Hit", "IndexProof", "search", "verify_index"]
SAMPLE = 16


@dataclass(frozen=True)
class Hit:
    """One ranked image."""

    rank: int
    image_id: str
    score: float
    """Cosine of query and image."""
    caption: str | None
    """One of its captions, None where they were deleted."""


def search(model: FoundModel, query: str, count: int, device: str = "cpu") -> dict[str, list[Hit]]:
    """The `count` nearest images for `query`, by `base` and by `tuned`.

    Raises:
        ModelError: a model cannot be loaded, or does not fit the image features.
        ArtifactError: the image features are damaged.
    """
    store = FeatureStore(model.features.path)
    gallery, ids = store.view(), store.image_ids
    nearest = {
        name: nearest_images(load_clip(reference, pick_device(device)), gallery, ids, query, min(count, len(ids)))
        for name, reference in (("base", model.base), ("tuned", model.tuned))
    }
    captions = _captions(model, {image for hits in nearest.values() for image, _ in hits})
    return {
        name: [Hit(rank, image, round(score, 4), captions.get(image)) for rank, (image, score) in enumerate(hits, 1)]
        for name, hits in nearest.items()
    }


def _captions(model: FoundModel, image_ids: set[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    if model.captions is None:
        return texts
    for batch in iter_batches(model.captions.path / "captions", ["image_id", "caption"]):
        rows: list[dict[str, Any]] = batch.to_pylist()
        for row in rows:
            if row["image_id"] in image_ids:
                texts.setdefault(row["image_id"], row["caption"])
        if len(texts) == len(image_ids):
            break
    return texts


@dataclass(frozen=True)
class IndexProof:
    """All comparisons of two models."""

    base: str
    tuned: str
    checks: tuple[IndexCheck, ...]

    @property
    def valid(self) -> bool:
        """Whether stored image embeddings stay valid."""
        return all(check.valid for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Itself as plain values."""
        checks = [check.as_json() for check in self.checks]
        return {"base": self.base, "tuned": self.tuned, "valid": self.valid, "checks": checks}


def verify_index(
    base: str, tuned: str, images: Path | None = None, features: Path | None = None, sample: int = SAMPLE
) -> IndexProof:
    """Compare two models' image towers and preprocessing, and what they make of images.

    Args:
        base: reference of the model that the index was made with.
        tuned: reference of the model that is to use it.
        images: folder or tar of images; evenly spread ones are encoded with both models.
        features: ``.npy`` file with the embedding of every image, in the order of the names in `images`.
        sample: how many images.

    Raises:
        ModelError: a model cannot be loaded.
        InputError: images or features cannot be read, or do not belong together.
    """
    first, second = load_clip(base), load_clip(tuned)
    checks = check_towers(first, second)
    if features is not None and images is None:
        raise InputError(f"{features} cannot be checked without its images; give --images as well")
    if images is not None:
        with ImageArchive(images) as archive:
            names = sorted(archive.names())
            if not names:
                raise InputError(f"{images} has no images")
            rows = np.unique(np.linspace(0, len(names) - 1, min(sample, len(names))).round().astype(int))
            chosen = [names[row] for row in rows]
            check, computed = check_images(first, second, [archive.open(name) for name in chosen], chosen)
        checks.append(check)
        if features is not None:
            checks.append(check_features(_stored(features, rows, len(names)), computed, chosen))
    return IndexProof(base, tuned, tuple(checks))


def _stored(path: Path, rows: np.ndarray, images: int) -> np.ndarray:
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy gives a damaged header to Python's own parsers
        raise InputError(f"cannot read features from {path}: {error}; expected a .npy file") from error
    if not isinstance(stored, np.ndarray) or stored.ndim != 2 or len(stored) != images:
        shape = getattr(stored, "shape", "several arrays")
        raise InputError(f"{path} holds {shape}; expected one row for each of the {images} images")
    return np.asarray(stored[rows])
