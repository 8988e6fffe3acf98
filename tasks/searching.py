"""Ranked images for a text query, the base model's beside the tuned one's, over the same stored image features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paraclip_core.clip.load import load_clip
from paraclip_core.clip.model import pick_device
from paraclip_core.clip.search import search as nearest_images
from storage.features import FeatureStore
from storage.parquet import iter_batches
from tasks.lookup import FoundModel

__all__ = ["Hit", "search"]


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
    found = {
        name: nearest_images(load_clip(reference, pick_device(device)), gallery, ids, query, min(count, len(ids)))
        for name, reference in (("base", model.base), ("tuned", model.tuned))
    }
    captions = _captions(model, {image for hits in found.values() for image, _ in hits})
    return {
        name: [Hit(rank, image, round(score, 4), captions.get(image)) for rank, (image, score) in enumerate(hits, 1)]
        for name, hits in found.items()
    }


def _captions(model: FoundModel, image_ids: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    if model.captions is None:
        return found
    for batch in iter_batches(model.captions.path / "captions", ["image_id", "caption"]):
        rows: list[dict[str, Any]] = batch.to_pylist()
        for row in rows:
            if row["image_id"] in image_ids:
                found.setdefault(row["image_id"], row["caption"])
        if len(found) == len(image_ids):
            break
    return found
