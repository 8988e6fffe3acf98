"""Uses of a stored image index: ranking images, verifying that the index stays valid, and auditing paraphrased
queries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from paraclip.storage.artifacts import Artifact, ArtifactStore
from paraclip.storage.features import FeatureStore
from paraclip.storage.files import write_atomic
from paraclip.storage.parquet import iter_batches
from paraclip.tasks.models import RELEASE, find_release, find_tuned
from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.expansion import mean_features
from paraclip_core.clip.images import ImageArchive
from paraclip_core.clip.index import ImageIndex, IndexCheck, check_encoders, check_features, check_images, read_index
from paraclip_core.clip.load import load_clip
from paraclip_core.clip.model import ClipModel, image_encoder_hash, pick_device
from paraclip_core.clip.search import Searcher, nearest_to
from paraclip_core.clip.search import search as nearest_images
from paraclip_core.errors import ConfigError, InputError, ModelError, UnknownNameError
from paraclip_core.evaluation.audit import Audit, audit_index
from paraclip_core.report.audit import render_audit, shown_images
from paraclip_core.report.html import thumbnail

QUERIES = 200
"""Number of queries that are taken from an index itself."""
LOOKED_AT = 10_000
"""Number of images that decide which names fit an index."""


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

    `model` and `base` are channels, artifacts, release folders or names that open_clip knows. The default of `base` is
    the artifact's base or, with your own index and a model that no run made, the model itself. `features` is your own
    index with the `ids` of its rows, see :func:`paraclip_core.clip.index.read_index`; by default the run's images.
    `images` is a folder, tar or Parquet with the images, whose names are the ids.
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
    if base is not None:
        before = str(find_release(base, store))
    else:
        # For a model that no run made, the model itself.
        before = tuned
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
    captions = captions_of(target.captions, {image for each in nearest.values() for hits in each for image, _ in hits})

    def ranked(hits: list[tuple[str, float]]) -> list[Hit]:
        return [
            Hit(rank, image, round(score, 4), next(iter(captions.get(image, ())), None))
            for rank, (image, score) in enumerate(hits, 1)
        ]

    return [{name: ranked(each[n]) for name, each in nearest.items()} for n in range(len(queries))]


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


def audit(target: SearchTarget, entries: Sequence[Any] | None = None, device: str = "cpu") -> Audit:
    """Measure the models of a target and compare them on the queries; only one if base and tuned are the same model.

    `entries` are queries, which are reworded by rules, and pairs of a query and its paraphrased query; by default they
    come from the index.
    """
    searcher = Searcher(target.index.features, target.index.ids)
    models = {name: partial(encode_texts, clip) for name, clip in load_models(target, searcher, device).items()}
    if target.base == target.tuned:
        del models["tuned"]
    if entries is None:
        entries = queries_of_index(target, searcher, models["base"])
    return audit_index(searcher, models, entries)


def queries_of_index(target: SearchTarget, searcher: Searcher, encode: Callable[[Sequence[str]], Any]) -> list[Any]:
    """Default queries for an index: captions of its images, two of one image as a pair, or names of things."""
    if target.captions is None:
        return _fitting_names(searcher, encode)
    captions = captions_of(target.captions, target.index.ids[:: max(1, len(target.index) // QUERIES)])
    others = [(*texts[:2], "another caption") for texts in captions.values() if len({*texts[:2]}) > 1]
    return [*others, *(texts[0] for texts in captions.values())]


def _fitting_names(searcher: Searcher, encode: Callable[[Sequence[str]], Any]) -> list[str]:
    """ImageNet's class names, those nearest to the most images first."""
    names = np.array(IMAGENET_CLASSNAMES)
    rows = np.unique(np.linspace(0, len(searcher.ids) - 1, LOOKED_AT, dtype=np.int64))
    nearest = (searcher.rows(rows) @ encode(IMAGENET_CLASSNAMES).T).argmax(1)
    votes = np.bincount(nearest, minlength=len(names))
    return [str(name) for name in names[np.argsort(-votes, kind="stable")][: min(QUERIES, int((votes > 0).sum()))]]


def write_page(
    path: Path, result: Audit, target: SearchTarget, names: Mapping[str, str], facts: Mapping[str, Any]
) -> None:
    """Write the audit's page, with pictures if the images are available."""
    page = render_audit(result, names, _thumbnails(result, target.images), facts)
    write_atomic(path, lambda file: file.write(page.encode("utf-8", "replace")))


def _thumbnails(result: Audit, images: Path | None) -> dict[str, bytes]:
    if images is None:
        return {}
    thumbnails = {}
    with ImageArchive(images) as archive:
        for image in sorted(shown_images(result)):
            try:
                thumbnails[image] = thumbnail(archive.open(image))
            except InputError:
                # Leave a gap on the page: the index may name images that no longer exist.
                continue
    return thumbnails
