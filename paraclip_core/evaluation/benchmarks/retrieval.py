"""Text→image and image→text retrieval, counted as CLIP_benchmark does (zeroshot_retrieval).

A caption is found if its image is among the k nearest; an image is found if any of its captions is.
"""

from __future__ import annotations

import numpy as np

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.base import Captions, Encoder, ImagePool, Measured, plain_queries, unique_features
from paraclip_core.evaluation.benchmarks import RECALL_DEPTHS, Benchmark, Source, Task, recalls
from paraclip_core.evaluation.intervals import Sample
from paraclip_core.evaluation.metrics import recall_at_k
from paraclip_core.evaluation.published import captioned_files, captioned_images
from paraclip_core.evaluation.scores import top_k


def load(source: Source) -> Task:
    captions, pool = captioned_images(source)
    pool.check_queries(captions.image_ids)
    queries = plain_queries(captions.captions, pool, captions.image_ids)
    return Task(lambda encoder: measure(captions, pool, encoder), queries=queries)


def measure(captions: Captions, pool: ImagePool, encoder: Encoder) -> Measured:
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
    return Measured(samples, notes)


RETRIEVAL = Benchmark(
    title="Retrieval",
    metrics=(
        *recalls("text_to_image_recall", "text → image recall", headline=10),
        *recalls("image_to_text_recall", "image → text recall"),
    ),
    load=load,
    files=captioned_files,
    aliases=("flickr8k", "flickr30k", "coco", "karpathy"),
    searches_images=True,
    resampled="images",
    needs_images=True,
)
