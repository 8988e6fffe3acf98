"""Text→image and image→text retrieval, counted as CLIP_benchmark does (zeroshot_retrieval).

A caption is found when its image is among the k nearest; an image is found when any of its captions is.
"""

from __future__ import annotations

import numpy as np

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.metrics import recall_at_k
from paraclip_core.evaluation.pool import Encoder, ImagePool, unique_features
from paraclip_core.evaluation.published import Captions
from paraclip_core.evaluation.ranking import top_k
from paraclip_core.evaluation.samples import Measured, Sample
from paraclip_core.metric_names import RECALL_DEPTHS

__all__ = ["measure"]


def measure(captions: Captions, pool: ImagePool, encoder: Encoder) -> Measured:
    """Recall at 1, 5 and 10 in both directions; queries of one image form a cluster.

    Args:
        captions: captions; those whose image is not in the pool are left out and counted in the notes.
        pool: the images; those without a caption are distractors of text→image and no queries of image→text.
        encoder: the model.

    Raises:
        BenchmarkError: no caption's image is in the pool.
    """
    rows = pool.find(captions.image_ids)
    kept = np.flatnonzero(rows >= 0)
    if not len(kept):
        raise BenchmarkError(f"none of the {len(rows)} captions ({captions.split}) has its image in the pool")
    owner = rows[kept]
    texts, index = unique_features(encoder.texts, [captions.captions[i] for i in kept.tolist()])
    images = pool.features(encoder)
    found = top_k(texts, images, max(RECALL_DEPTHS))[index]
    samples = {f"text_to_image_recall@{k}": Sample(recall_at_k(found, owner, k), owner) for k in RECALL_DEPTHS}
    asked = np.unique(owner)
    best = owner[top_k(images[asked], texts[index], max(RECALL_DEPTHS))]
    samples |= {f"image_to_text_recall@{k}": Sample(recall_at_k(best, asked, k), asked) for k in RECALL_DEPTHS}
    notes = {
        "protocol": "a caption is found by its image, an image by any of its captions",
        "split": captions.split,
        "images": len(pool.ids),
        "images_with_captions": len(asked),
        "captions": len(owner),
        "captions_without_image": len(rows) - len(owner),
    }
    return Measured(samples, notes)
