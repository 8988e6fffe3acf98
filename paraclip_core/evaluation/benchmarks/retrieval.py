"""Text→image and image→text retrieval, counted as CLIP_benchmark does (zeroshot_retrieval).

A caption is found if its image is among the k nearest; an image is found if any of its captions is.

The option `language` names the language of the captions. For Crossmodal-3600's ``captions.jsonl`` (image/key, and a
field for each language) and for rows with a field `language` it selects the captions to read. Without it every language
is measured separately: the figures are the means over them, and each language's mean of text→image recall@1, 5 and 10
is a row, as in Immich's table of models. For CLIP_benchmark's JSON of one language (image_paths, annotations) and for
all other formats the option only labels the results.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from paraclip_core.captions.readers.json import load_json
from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.base import Captions, Encoder, ImagePool, Measured, plain_queries, unique_features
from paraclip_core.evaluation.benchmarks import RECALL_DEPTHS, Benchmark, Metric, Source, Task, recalls
from paraclip_core.evaluation.intervals import Sample
from paraclip_core.evaluation.metrics import macro_weights, recall_at_k
from paraclip_core.evaluation.published import (
    Row,
    captioned_files,
    captioned_images,
    field,
    of_split,
    pool_of,
    records,
)
from paraclip_core.evaluation.scores import top_k
from paraclip_core.options import Options

MEAN_RECALL = "text_to_image_mean_recall"
SEVERAL = "mul"
"""ISO 639 code for multiple languages, used in their results."""


class RetrievalOptions(Options):
    """Which captions are read, and how results name them."""

    language: str | None = None
    """Language of the captions, such as `de`; which distinguishes results of several languages. Without it
    all languages of a multilingual file are measured, and their mean."""


def load(source: Source) -> Task:
    language = RetrievalOptions.model_validate(dict(source.options)).language
    path = source.path
    by_language = None if path is None or not path.is_file() else _multilingual(path, language, source.split)
    if by_language is None or path is None:
        captions, pool = captioned_images(source)
        by_language = {language: captions}
    else:
        pool = pool_of(path, [image for each in by_language.values() for image in each.image_ids], source.images)
    for captions in by_language.values():
        pool.check_queries(captions.image_ids)
    captioned = [pair for each in by_language.values() for pair in zip(each.captions, each.image_ids, strict=True)]
    queries = plain_queries([text for text, _ in captioned], pool, [image for _, image in captioned])
    return Task(lambda encoder: measure_languages(by_language, pool, encoder), queries=queries)


def _multilingual(path: Path, language: str | None, split: str | None) -> Mapping[str | None, Captions] | None:
    """Captions by language, for formats with several languages or an unnamed one; None for others.

    Of rows that state a split those of `split` are read, as in :func:`published.load_captions`.
    """
    if path.suffix == ".json" and isinstance(value := load_json(path), dict) and "image_paths" in value:
        images, texts = value["image_paths"], value.get("annotations")
        if not isinstance(images, list) or not isinstance(texts, list) or len(images) != len(texts):
            raise BenchmarkError(f"{path}: expected lists `image_paths` and `annotations` of one length")
        ids = [PurePosixPath(field(path, n, {"image": image}, "image")).name for n, image in enumerate(images, 1)]
        captions = [field(path, n, {"text": text}, "text") for n, text in enumerate(texts, 1)]
        return {language: Captions(ids, captions, "all")}
    first = next(iter(records(path)), None) if path.suffix == ".jsonl" else None
    if first is None or not {"image/key", "language"} & first[1].keys():
        return None
    every = [each for number, row in records(path) for each in _spoken(path, number, row, language)]
    places, of = of_split(path, [row for _, row in every], split)
    spoken = defaultdict[str | None, list[Row]](list)
    for name, row in (every[place] for place in places):
        spoken[name].append(row)
    chosen = list(spoken) if language is None else [language]
    if chosen[0] not in spoken:
        names = ", ".join(map(str, spoken))
        raise BenchmarkError(f"{path} has no captions of language {language!r}; it has {names} (split {of})")
    return {name: Captions([row[0] for row in spoken[name]], [row[1] for row in spoken[name]], of) for name in chosen}


def _spoken(path: Path, number: int, row: dict[str, Any], wanted: str | None) -> Iterator[tuple[str, Row]]:
    """Language, and image, caption and split, of all captions of a row; in Crossmodal-3600 each image must have
    `wanted` ones."""
    if "image/key" in row:
        image = field(path, number, row, "image/key")
        spoken = {name: value for name, value in row.items() if isinstance(value, dict) and "caption" in value}
        if wanted is not None and wanted not in spoken:
            raise BenchmarkError(
                f"{path}, row {number}: no captions of language {wanted!r}; it has {', '.join(spoken)}"
            )
        by_language = {name: value["caption"] for name, value in spoken.items()}
    else:
        image = field(path, number, row, "image", "filename", "file_name", "image_id")
        by_language = {field(path, number, row, "language"): row.get("captions", row.get("caption"))}
    split = None if row.get("split") in (None, "") else field(path, number, row, "split")
    for name, texts in by_language.items():
        for text in texts if isinstance(texts, list) else [texts]:
            yield name, (image, field(path, number, {"caption": text}, "caption"), split)


def measure_languages(by_language: Mapping[str | None, Captions], pool: ImagePool, encoder: Encoder) -> Measured:
    """Measure the only language, or several separately with their unweighted mean; an image is a cluster."""
    if len(by_language) == 1:
        ((name, captions),) = by_language.items()
        return measure(captions, pool, encoder, name)
    parts, notes = {}, []
    for name, captions in by_language.items():
        measured = measure(captions, pool, encoder)
        depths = [measured.samples[f"text_to_image_recall@{k}"] for k in RECALL_DEPTHS]
        mean = Sample(np.mean([depth.values for depth in depths], axis=0), depths[0].clusters)
        parts[name] = {**measured.samples, MEAN_RECALL: mean}
        notes.append(measured.notes)
    samples = {}
    for metric in next(iter(parts.values())):
        some = [part[metric] for part in parts.values()]
        weights = macro_weights(np.repeat(list(parts), [len(sample.values) for sample in some]).tolist())
        values, clusters = (np.concatenate([getattr(sample, of) for sample in some]) for of in ("values", "clusters"))
        samples[metric] = Sample(values * weights, clusters)
    samples |= {f"{MEAN_RECALL}@{name}": part[MEAN_RECALL] for name, part in parts.items()}
    counts = {name: sum(some[name] for some in notes) for name in ("captions", "captions_without_image")}
    return Measured(samples, {**notes[0], **counts, "language": SEVERAL, "languages": list(parts)})


def measure(captions: Captions, pool: ImagePool, encoder: Encoder, language: str | None = None) -> Measured:
    """Recall at 1, 5 and 10 in both directions; queries of one image form a cluster.

    Captions whose image is not in the pool are left out and counted in the notes; images without a caption are
    distractors for text→image and not queries for image→text.
    """
    rows = pool.find(captions.image_ids)
    pooled = np.flatnonzero(rows >= 0)
    if not len(pooled):
        raise BenchmarkError(f"none of the {len(rows)} captions ({captions.split}) has its image in the pool")
    owner = rows[pooled]
    texts, index = unique_features(encoder.texts, [captions.captions[i] for i in pooled.tolist()])
    images = pool.features(encoder)
    ranked = top_k(texts, images, max(RECALL_DEPTHS))[index]
    samples = {f"text_to_image_recall@{k}": Sample(recall_at_k(ranked, owner, k), owner) for k in RECALL_DEPTHS}
    captioned = np.unique(owner)
    owners = owner[top_k(images[captioned], texts[index], max(RECALL_DEPTHS))]
    samples |= {
        f"image_to_text_recall@{k}": Sample(recall_at_k(owners, captioned, k), captioned) for k in RECALL_DEPTHS
    }
    notes = {
        "protocol": "a caption is found by its image, an image by any of its captions",
        "split": captions.split,
        "images": len(pool.ids),
        "images_with_captions": len(captioned),
        "captions": len(owner),
        "captions_without_image": len(rows) - len(owner),
    }
    return Measured(samples, notes if language is None else {**notes, "language": language})


RETRIEVAL = Benchmark(
    title="Retrieval",
    metrics=(
        *recalls("text_to_image_recall", "text → image recall", headline=10),
        *recalls("image_to_text_recall", "image → text recall"),
        Metric(MEAN_RECALL, "mean recall, text → image, of @1, 5 and 10", by_part=True),
    ),
    load=load,
    files=captioned_files,
    aliases=("flickr8k", "flickr30k", "coco", "karpathy"),
    searches_images=True,
    resampled="images",
    options=RetrievalOptions,
    needs_images=True,
)
