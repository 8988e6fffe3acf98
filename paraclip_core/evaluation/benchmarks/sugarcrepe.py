"""SugarCrepe (Hsieh et al., NeurIPS 2023): is the caption nearer to its image than a hard negative is?

Format: a folder of JSON files, one a category, each an object keyed "0".."n" of filename, caption and
negative_caption. The images are COCO val2017, in a tar or folder beside the files. Where they are not all there,
nothing is said about accuracy: the only figure is then ``text_only_closeness``, the mean cosine (x 100) between a
caption and its negative, where lower means that the text tower tells them further apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.benchmarks import Benchmark, Metric, Source, Task
from paraclip_core.evaluation.image_files import find_images, images_beside, in_reading_order
from paraclip_core.evaluation.metrics import macro_weights
from paraclip_core.evaluation.pool import Encoder, ImagePool, archive_pool, unique_features
from paraclip_core.evaluation.results import Measured, Sample
from paraclip_core.evaluation.rows import field, records


@dataclass(frozen=True)
class Rows:
    """All rows of all categories, in the order of category and file."""

    categories: Sequence[str]
    images: Sequence[str]
    captions: Sequence[str]
    negatives: Sequence[str]
    pool: ImagePool | None
    """The images, None unless all of them are there."""
    images_found: int
    duplicates: int
    """Rows that an earlier category has too; the published counts hold them, so they are measured."""


def load(source: Source) -> Task:
    """Read the folder, and find categories that no interval can be given for."""
    rows = read_rows(source.need_path(), source.images)
    categories: dict[str, set[str]] = {}
    for category, image in zip(rows.categories, rows.images, strict=True):
        categories.setdefault(category, set()).add(image)
    for category, images in categories.items():
        if len(images) == 1:
            raise BenchmarkError(
                f"all rows of category {category!r} are of one image, {images.pop()!r}; an interval needs two at "
                "least: add rows of another, or leave the file out"
            )
    return Task(lambda encoder: measure(rows, encoder))


def read_rows(path: Path, images_at: Path | None = None) -> Rows:
    """Read the folder, its images from `images_at` or beside it."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    rows = [
        (
            file.stem,
            field(file, number, row, "filename"),
            field(file, number, row, "caption"),
            field(file, number, row, "negative_caption"),
        )
        for file in files
        for number, row in records(file)
    ]
    if not rows:
        raise BenchmarkError(f"{path} has no SugarCrepe rows; expected a folder with add_obj.json and its six siblings")
    categories, images, captions, negatives = zip(*rows, strict=True)
    archive, ids = images_at or images_beside(path), list(dict.fromkeys(images))
    places = {} if archive is None else find_images(archive, ids)
    pool = None
    if len(places) == len(ids):
        ids = in_reading_order(places)
        pool = archive_pool(ids, [places[image] for image in ids])
    elif images_at is not None:
        missing = next(image for image in ids if image not in places)
        raise BenchmarkError(f"{images_at} lacks {len(ids) - len(places)} of {len(ids)} images, first {missing!r}")
    duplicates = len(rows) - len({row[1:] for row in rows})
    return Rows(categories, images, captions, negatives, pool, len(places), duplicates)


def measure(rows: Rows, encoder: Encoder) -> Measured:
    """Accuracy of each category and their unweighted mean, or the text-only figure; an image's rows form a cluster."""
    features, index = unique_features(encoder.texts, [*rows.captions, *rows.negatives])
    caption, negative = features[index[: len(rows.captions)]], features[index[len(rows.captions) :]]
    if rows.pool is None:
        name, values = "text_only_closeness", np.einsum("nd,nd->n", caption, negative, dtype=np.float64)
    else:
        images = np.asarray(rows.pool.features(encoder), np.float32)[rows.pool.find(rows.images)]
        # A tie is a miss, so that a model that cannot tell the texts apart scores 0 and not 100.
        right = np.einsum("nd,nd->n", images, caption) > np.einsum("nd,nd->n", images, negative)
        name, values = "accuracy", right.astype(np.float64)
    _, clusters = np.unique(np.array(rows.images), return_inverse=True)
    return Measured(_by_category(name, values, clusters.astype(np.int64), np.array(rows.categories)), _notes(rows))


def _by_category(
    name: str, values: NDArray[np.float64], clusters: NDArray[np.int64], categories: NDArray[np.str_]
) -> dict[str, Sample]:
    samples = {name: Sample(values * macro_weights(categories.tolist()), clusters)}
    for kind in np.unique(categories).tolist():
        rows = categories == kind
        samples[f"{name}@{kind}"] = Sample(values[rows], clusters[rows])
    return samples


def _notes(rows: Rows) -> dict[str, Any]:
    with_images = "accuracy: cosine of image and caption above that of image and negative, mean over categories"
    text_only = "text only, images are not all there: mean cosine of caption and negative, lower is further apart"
    return {
        "protocol": text_only if rows.pool is None else with_images,
        "rows": len(rows.captions),
        "duplicate_rows": rows.duplicates,
        "images": len(set(rows.images)),
        "images_found": rows.images_found,
    }


SUGARCREPE = Benchmark(
    title="SugarCrepe",
    metrics=(
        Metric("accuracy", by_part=True, published="acc"),
        Metric("text_only_closeness", lower_is_better=True, by_part=True),
    ),
    load=load,
    task="image_caption_selection",
    hub_task="image-text-matching",
    needs_images=True,
)
