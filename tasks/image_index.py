"""Search of a stored image index by the base and the tuned model."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from paraclip.storage.artifacts import Artifact, ArtifactStore
from paraclip.storage.features import FeatureStore
from paraclip.storage.parquet import iter_batches
from paraclip.tasks.models import RELEASE, find_release, find_tuned
from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.expansion import mean_features
from paraclip_core.clip.index import ImageIndex, read_index
from paraclip_core.clip.load import load_clip
from paraclip_core.clip.model import ClipModel, image_encoder_hash, pick_device
from paraclip_core.clip.search import Searcher, nearest_to
from paraclip_core.clip.search import search as nearest_images
from paraclip_core.errors import ConfigError, ModelError, UnknownNameError


@dataclass(frozen=True)
class SearchTarget:
    """Two models and the image index that both can search."""

    base: str
    """Reference of the model that the index was made with."""
    tuned: str
    index: ImageIndex
    captions: Artifact | None
    """Captions of the images; None with the user's own index, or if they were deleted."""
    images: Path | None = None
    """Location of the images, if the user gives it."""


def search_target(
    model: str,
    store: ArtifactStore,
    base: str | None = None,
    features: Path | None = None,
    ids: Path | None = None,
    images: Path | None = None,
) -> SearchTarget:
    """Resolve which models search which index.

    The default of `base` is the artifact's base or, with your own index and a model that no run made, the model itself.
    `features` is your own index with the `ids` of its rows, see :func:`paraclip_core.clip.index.read_index`; by default
    the run's images. `images` is a folder, tar or Parquet with the images, whose names are the ids.
    """
    if features is None:
        if ids is not None:
            raise ConfigError("--ids belongs to --features; give both, or neither")
        artifact, base = find_tuned(model, store, base)
        inputs = artifact.manifest.inputs
        stored = store.expect("features", inputs["features"], f"the images of {model!r}").path
        features_of = FeatureStore(stored)
        index = ImageIndex(features_of.view(), features_of.image_ids, str(stored))
        captions = store.find("ingest", inputs["ingest"]) if "ingest" in inputs else None
        return SearchTarget(base, str(artifact.path / RELEASE), index, captions, images)
    tuned = str(find_release(model, store))
    # For a model that no run made, the model itself.
    before = tuned if base is None else str(find_release(base, store))
    if base is None:
        with suppress(UnknownNameError):
            before = find_tuned(model, store)[1]
    return SearchTarget(before, tuned, read_index(features, ids), None, images)


def load_models(target: SearchTarget, searcher: Searcher, device: str = "cpu") -> dict[str, ClipModel]:
    """Load `base` and `tuned`; if they are the same, one model under both names."""
    base = load_clip(target.base, pick_device(device))
    searcher.check(base)
    if target.tuned == target.base:
        return {"base": base, "tuned": base}
    tuned = load_clip(target.tuned, pick_device(device))
    searcher.check(tuned)
    encoders = image_encoder_hash(base), image_encoder_hash(tuned)
    if encoders[0] != encoders[1]:
        raise ModelError(
            f"{target.base} and {target.tuned} have different image encoders ({encoders[0][:12]} and "
            f"{encoders[1][:12]}), so {target.index.source} cannot be an index of both; give --base the model that the "
            "tuned one was made from"
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
    """One of its captions, None if there are none."""


def search(
    target: SearchTarget, query: str, count: int, device: str = "cpu", paraphrases: Sequence[str] | None = None
) -> dict[str, list[Hit]]:
    """The `count` images nearest to `query`, by `base` and by `tuned`.

    With `paraphrases` of the query, also by `expanded`, the tuned model's mean feature of query and paraphrases.
    """
    return search_each(target, [query], count, device, None if paraphrases is None else [[query, *paraphrases]])[0]


def search_each(
    target: SearchTarget,
    queries: Sequence[str],
    count: int,
    device: str = "cpu",
    groups: Sequence[Sequence[str]] | None = None,
) -> list[dict[str, list[Hit]]]:
    """The result of :func:`search` for each query; the models are loaded once.

    `groups` has each query with its paraphrases, for `expanded`.
    """
    searcher = Searcher(target.index.features, target.index.ids)
    models = load_models(target, searcher, device)
    nearest = {name: nearest_images(clip, searcher, queries, count) for name, clip in models.items()}
    if groups is not None:
        vectors = mean_features(partial(encode_texts, models["tuned"]), groups)
        nearest["expanded"] = nearest_to(searcher, vectors, count)
    shown = {image for lists in nearest.values() for hits in lists for image, _ in hits}
    captions = captions_of(target.captions, shown)

    def ranked(hits: list[tuple[str, float]]) -> list[Hit]:
        return [
            Hit(rank, image, round(score, 4), next(iter(captions.get(image, ())), None))
            for rank, (image, score) in enumerate(hits, 1)
        ]

    return [{name: ranked(lists[n]) for name, lists in nearest.items()} for n in range(len(queries))]


def most_frequent(captions: Artifact, count: int) -> list[str]:
    """The queries that were asked most often, at most `count`; empty if these are captions and no log."""
    queries: list[tuple[int, str]] = []
    for batch in iter_batches(captions.path / "captions"):
        if "count" not in batch.schema.names:
            return []
        rows = zip(batch["count"].to_pylist(), batch["caption"].to_pylist(), strict=True)
        queries = heapq.nlargest(count, [*queries, *rows])
    return [query for _, query in queries]


def captions_of(captions: Artifact | None, image_ids: Iterable[str]) -> dict[str, list[str]]:
    """The captions of each of these images, if there are any."""
    chosen: dict[str, list[str]] = {}
    if captions is None:
        return chosen
    wanted = pc.SetLookupOptions(value_set=pa.array(list(image_ids), pa.string()))
    for batch in iter_batches(captions.path / "captions", ["image_id", "caption"]):
        rows = batch.filter(pc.call_function("is_in", [batch["image_id"]], wanted))
        for image, caption in zip(*(column.to_pylist() for column in rows.columns), strict=True):
            chosen.setdefault(image, []).append(caption)
    return chosen
