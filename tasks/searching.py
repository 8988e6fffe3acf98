"""Ranked images for a text query, the base model's beside the tuned one's, over the same stored image features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.models import load_clip
from paraclip_core.evaluation.ranking import top_k
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
    gallery, ids = store.matrix(), store.image_ids
    count = min(count, len(ids))
    found: dict[str, list[tuple[int, float]]] = {}
    for name, reference in (("base", model.base), ("tuned", model.tuned)):
        vector = encode_texts(load_clip(reference, device), [query])
        rows = top_k(vector, gallery, count)[0]
        scores = np.asarray(gallery[rows], dtype=np.float32) @ vector[0]
        found[name] = list(zip(rows.tolist(), scores.tolist(), strict=True))
    wanted = {ids[row] for hits in found.values() for row, _ in hits}
    captions = _captions(model, wanted)
    return {
        name: [
            Hit(rank, ids[row], round(score, 4), captions.get(ids[row])) for rank, (row, score) in enumerate(hits, 1)
        ]
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
