"""What a stored image index is good for: ranked images for a query, and the proof that it stays valid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paraclip.storage.artifacts import Artifact, ArtifactStore
from paraclip.storage.features import FeatureStore
from paraclip.storage.parquet import iter_batches
from paraclip.tasks.models import base_of, find_model, find_release
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.index import ImageIndex, IndexCheck, check_features, check_images, check_towers, read_index
from paraclip_core.clip.load import load_clip
from paraclip_core.clip.model import ClipModel, image_tower_hash, pick_device
from paraclip_core.clip.search import Searcher
from paraclip_core.clip.search import search as nearest_images
from paraclip_core.errors import ConfigError, InputError, ModelError

SAMPLE = 16


@dataclass(frozen=True)
class SearchTarget:
    """Two models, and the image index that both can search."""

    base: str
    """Reference of the model that the index was made with."""
    tuned: str
    index: ImageIndex
    captions: Artifact | None
    """Captions of the images; None with an index of the user's own, or where they were deleted."""
    images: Path | None = None
    """Where the images lie, if the user says so."""


def search_target(
    model: str,
    store: ArtifactStore,
    base: str | None = None,
    features: Path | None = None,
    ids: Path | None = None,
    images: Path | None = None,
) -> SearchTarget:
    """What to search with which models.

    Args:
        model: a channel, an artifact, a release folder or a name that open_clip knows.
        store: where the first two are looked for.
        base: the model before it was tuned; by default what the artifact says, or with an index of one's own and a
            model that no run made, the model itself.
        features: an index of one's own, see :func:`paraclip_core.clip.index.read_index`; by default the run's images.
        ids: the ids of its rows.
        images: folder, tar or Parquet with the images, whose names are the ids.
    """
    if features is None:
        if ids is not None:
            raise ConfigError("--ids belongs to --features; give both, or neither")
        pair = find_model(model, store, base)
        stored = FeatureStore(pair.features.path)
        index = ImageIndex(stored.view(), stored.image_ids, str(pair.features.path))
        return SearchTarget(pair.base, pair.tuned, index, pair.captions, images)
    tuned = str(find_release(model, store))
    before = str(find_release(base, store)) if base else base_of(model, store) or tuned
    return SearchTarget(before, tuned, read_index(features, ids), None, images)


def load_models(target: SearchTarget, searcher: Searcher, device: str = "cpu") -> dict[str, ClipModel]:
    """`base` and `tuned`, loaded; one model under both names where they are one."""
    base = load_clip(target.base, pick_device(device))
    searcher.check(base)
    if target.tuned == target.base:
        return {"base": base, "tuned": base}
    tuned = load_clip(target.tuned, pick_device(device))
    searcher.check(tuned)
    towers = image_tower_hash(base), image_tower_hash(tuned)
    if towers[0] != towers[1]:
        raise ModelError(
            f"{target.base} and {target.tuned} have different image towers ({towers[0][:12]} and {towers[1][:12]}), so "
            f"{target.index.source} cannot be an index of both; give as --base what the tuned model was made from"
        )
    return {"base": base, "tuned": tuned}


@dataclass(frozen=True)
class Hit:
    """One ranked image."""

    rank: int
    image_id: str
    score: float
    """Cosine of query and image."""
    caption: str | None
    """One of its captions, None where there are none."""


def search(target: SearchTarget, query: str, count: int, device: str = "cpu") -> dict[str, list[Hit]]:
    """The `count` nearest images for `query`, by `base` and by `tuned`."""
    searcher = Searcher(target.index.features, target.index.ids)
    models = load_models(target, searcher, device)
    nearest = {name: nearest_images(clip, searcher, query, count) for name, clip in models.items()}
    captions = captions_of(target.captions, {image for hits in nearest.values() for image, _ in hits})
    return {
        name: [Hit(rank, image, round(score, 4), captions.get(image)) for rank, (image, score) in enumerate(hits, 1)]
        for name, hits in nearest.items()
    }


def captions_of(captions: Artifact | None, image_ids: set[str]) -> dict[str, str]:
    """The first caption of each of some images, as far as there are any."""
    first: dict[str, str] = {}
    if captions is None:
        return first
    for batch in iter_batches(captions.path / "captions", ["image_id", "caption"]):
        rows: list[dict[str, Any]] = batch.to_pylist()
        for row in rows:
            if row["image_id"] in image_ids:
                first.setdefault(row["image_id"], row["caption"])
        if len(first) == len(image_ids):
            break
    return first


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
        checks = [asdict(check) for check in self.checks]
        return {"base": self.base, "tuned": self.tuned, "valid": self.valid, "checks": checks}


def verify_index(
    base: str,
    tuned: str,
    images: Path | None = None,
    features: Path | None = None,
    sample: int = SAMPLE,
    ids: Path | None = None,
) -> IndexProof:
    """Compare two models' image towers and preprocessing, and what they make of images.

    Args:
        base: reference of the model that the index was made with.
        tuned: reference of the model that is to use it.
        images: folder or tar of images; evenly spread ones are encoded with both models.
        features: an index of these images, see :func:`paraclip_core.clip.index.read_index`; without ids its rows are in
            the order of the images' names.
        sample: how many images.
        ids: the names of the index's rows.
    """
    first, second = load_clip(base), load_clip(tuned)
    checks = check_towers(first, second)
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
    return IndexProof(base, tuned, tuple(checks))
