"""SugarCrepe++ (Dumpala et al., NeurIPS 2024): two captions of one meaning, and one that only looks alike.

- ``image_to_text``: both right captions are nearer to the image than the wrong one is (the authors' ITT);
- ``text_only``: the right captions are nearer to one another than either is to the wrong one (their TOT).

Format: the authors' folder with replace_att.json and its four siblings, lists of filename, caption, caption2 and
negative_caption. The images are COCO val2017. Where they are not all there, only ``text_only`` is measured, and the
notes say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.benchmarks import Benchmark, Metric, Source, Task
from paraclip_core.evaluation.image_files import pool_for
from paraclip_core.evaluation.metrics import macro_weights, pair_scores
from paraclip_core.evaluation.pool import Encoder, ImagePool, need_two, unique_features
from paraclip_core.evaluation.results import Measured, Sample
from paraclip_core.evaluation.rows import field, records


@dataclass(frozen=True)
class Triples:
    """Each row an image, two right captions and a wrong one."""

    categories: Sequence[str]
    images: Sequence[str]
    first: Sequence[str]
    second: Sequence[str]
    wrong: Sequence[str]
    pool: ImagePool | None
    """The images; None unless all of them are there."""


def load(source: Source) -> Task:
    """Read the folder or file."""
    path = source.need_path()
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    rows = [
        (
            file.stem,
            field(file, number, row, "filename"),
            field(file, number, row, "caption"),
            field(file, number, row, "caption2"),
            field(file, number, row, "negative_caption"),
        )
        for file in files
        for number, row in records(file)
    ]
    if not rows:
        raise BenchmarkError(f"{path} has no SugarCrepe++ rows; expected replace_att.json and its four siblings")
    categories, images, first, second, wrong = zip(*rows, strict=True)
    for category in dict.fromkeys(categories):
        need_two([image for of, image in zip(categories, images, strict=True) if of == category])
    triples = Triples(categories, images, first, second, wrong, pool_for(source, images))
    return Task(lambda encoder: measure(triples, encoder))


def measure(triples: Triples, encoder: Encoder) -> Measured:
    """Both scores, each as the unweighted mean over categories and of each; an image's rows form a cluster."""
    count = len(triples.images)
    texts, index = unique_features(encoder.texts, [*triples.first, *triples.second, *triples.wrong])
    first, second, wrong = index[:count], index[count : 2 * count], index[2 * count :]
    alike = pair_scores(texts, first, texts, second)
    rivals = np.maximum(pair_scores(texts, first, texts, wrong), pair_scores(texts, second, texts, wrong))
    scores = {"text_only": alike > rivals}
    if triples.pool is not None:
        images, rows = triples.pool.features(encoder), triples.pool.find(triples.images)
        lesser = np.minimum(pair_scores(images, rows, texts, first), pair_scores(images, rows, texts, second))
        scores = {"image_to_text": lesser > pair_scores(images, rows, texts, wrong), **scores}
    notes = {
        "protocol": "image_to_text: both captions nearer to the image than the negative; text_only: nearer to one "
        "another than to the negative; mean over categories"
        + ("" if triples.pool is not None else "; text only, images are not all there"),
        "rows": count,
        "images": len(set(triples.images)),
    }
    _, clusters = np.unique(np.array(triples.images), return_inverse=True)
    return Measured(_by_category(triples, scores, clusters.astype(np.int64)), notes)


def _by_category(
    triples: Triples, scores: dict[str, NDArray[np.bool_]], clusters: NDArray[np.int64]
) -> dict[str, Sample]:
    weights, categories = macro_weights(triples.categories), np.array(triples.categories)
    samples = {}
    for name, right in scores.items():
        values = right.astype(np.float64)
        samples[name] = Sample(values * weights, clusters)
        for category in dict.fromkeys(triples.categories):
            rows = categories == category
            samples[f"{name}@{category}"] = Sample(values[rows], clusters[rows])
    return samples


SUGARCREPE_PP = Benchmark(
    title="SugarCrepe++",
    metrics=(Metric("image_to_text", by_part=True, published="acc"), Metric("text_only", by_part=True)),
    load=load,
    aliases=("sugarcrepe++", "scpp"),
    task="image_caption_selection",
    hub_task="image-text-matching",
    needs_images=True,
)
