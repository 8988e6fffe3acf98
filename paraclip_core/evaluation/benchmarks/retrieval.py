"""Text→image and image→text retrieval, counted as CLIP_benchmark does (zeroshot_retrieval).

A caption is found when its image is among the k nearest; an image is found when any of its captions is.

The option `language` names the language of the captions. Of Crossmodal-3600's ``captions.jsonl`` (image/key, and a
field for each language) and of rows with a field `language` it chooses those that are read; of CLIP_benchmark's JSON
for one language (image_paths, annotations) and of all other formats it is the label that results go by.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from paraclip_core.captions.readers.json import load_json
from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.base import Captions, Encoder, ImagePool, Measured, unique_features
from paraclip_core.evaluation.benchmarks import RECALL_DEPTHS, Benchmark, Source, Task, recalls
from paraclip_core.evaluation.metrics import Sample, recall_at_k, top_k
from paraclip_core.evaluation.published import captioned_files, captioned_images, field, pool_of, records
from paraclip_core.options import Options


class RetrievalOptions(Options):
    """Which captions, and how results name them."""

    language: str | None = None
    """Language of the captions, such as `de`; results of several languages are told apart by it."""


def load(source: Source) -> Task:
    """Captions and their images."""
    language = RetrievalOptions.model_validate(dict(source.options)).language
    rows = None if source.path is None or not source.path.is_file() else _multilingual(source.path, language)
    if rows is None or source.path is None:
        captions, pool = captioned_images(source)
    else:
        captions = Captions([image for image, _ in rows], [text for _, text in rows], "all")
        pool = pool_of(source.path, captions.image_ids, source.images)
    pool.check_queries(captions.image_ids)
    return Task(lambda encoder: measure(captions, pool, encoder, language))


def _multilingual(path: Path, language: str | None) -> list[tuple[str, str]] | None:
    """Image and caption of the formats that hold several languages, or one without saying which; None of others."""
    if path.suffix == ".json" and isinstance(value := load_json(path), dict) and "image_paths" in value:
        images, texts = value["image_paths"], value.get("annotations")
        if not isinstance(images, list) or not isinstance(texts, list) or len(images) != len(texts):
            raise BenchmarkError(f"{path}: expected lists `image_paths` and `annotations` of one length")
        return [
            (PurePosixPath(field(path, n, {"image": image}, "image")).name, field(path, n, {"text": text}, "text"))
            for n, (image, text) in enumerate(zip(images, texts, strict=True), 1)
        ]
    first = next(iter(records(path)), None) if path.suffix == ".jsonl" else None
    if first is None or not {"image/key", "language"} & first[1].keys():
        return None
    chosen = [pair for number, row in records(path) for pair in _of_language(path, number, row, language)]
    if not chosen:
        raise BenchmarkError(f"{path} has no captions of language {language!r}")
    return chosen


def _of_language(path: Path, number: int, row: dict[str, Any], language: str | None) -> Iterator[tuple[str, str]]:
    if language is None:
        raise BenchmarkError(f"{path} has captions of several languages; name one in options: {{language: de}}")
    if "image/key" not in row:
        if row.get("language") == language:
            texts = row.get("captions", row.get("caption"))
            image = field(path, number, row, "image", "filename", "file_name", "image_id")
            for text in texts if isinstance(texts, list) else [texts]:
                yield image, field(path, number, {"caption": text}, "caption")
        return
    texts = row.get(language)
    if not isinstance(texts, dict) or not isinstance(texts.get("caption"), list):
        languages = [name for name, value in row.items() if isinstance(value, dict) and "caption" in value]
        raise BenchmarkError(
            f"{path}, row {number}: no captions of language {language!r}; it has {', '.join(languages)}"
        )
    for text in texts["caption"]:
        yield field(path, number, row, "image/key"), field(path, number, {"caption": text}, "caption")


def measure(captions: Captions, pool: ImagePool, encoder: Encoder, language: str | None = None) -> Measured:
    """Recall at 1, 5 and 10 in both directions; queries of one image form a cluster.

    Captions whose image is not in the pool are left out and counted in the notes; images without a caption are
    distractors of text→image and no queries of image→text.
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
        *recalls("text_to_image_recall", "text → image recall", "image_retrieval_recall", headline=10),
        *recalls("image_to_text_recall", "image → text recall", "text_retrieval_recall"),
    ),
    load=load,
    files=captioned_files,
    aliases=("flickr8k", "flickr30k", "coco", "karpathy"),
    searches_images=True,
    task="zeroshot_retrieval",
    options=RetrievalOptions,
    needs_images=True,
)
