"""What a text tower is worth on images that training leaves out, in a second or two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from paraclip_core.clip.encode import encode_ragged
from paraclip_core.clip.models import ClipModel
from paraclip_core.clip.ragged import Ragged
from paraclip_core.evaluation.metrics import average_overlap, jaccard, recall_at_k
from paraclip_core.evaluation.ranking import top_k
from paraclip_core.training.log import rounded

__all__ = ["AO", "JS", "PARAPHRASE_RECALL", "RECALL", "ValidationSet", "measure"]

K = 10
AO, JS = f"ao@{K}", f"js@{K}"
RECALL = f"text_to_image_recall@{K}"
PARAPHRASE_RECALL = f"paraphrase_recall@{K}"


@dataclass(frozen=True)
class ValidationSet:
    """Images that training leaves out, and texts to look for them with."""

    gallery: NDArray[np.float16]
    """Stored features of the images, each image once; [m, d]."""
    captions: Ragged
    """Queries whose image is known."""
    targets: NDArray[np.int64]
    """Row in the gallery of each caption's image."""
    first: Ragged | None = None
    """Captions of rows with paraphrases, for the overlap of both rankings."""
    second: Ragged | None = None
    """Paraphrase 2 of the same rows."""
    pair_targets: NDArray[np.int64] | None = None
    """Row in the gallery of each of these rows' image."""


def measure(clip: ClipModel, held_out: ValidationSet) -> dict[str, float]:
    """Recall@10 of the captions and, where there are pairs, AO@10 and JS@10 between caption and paraphrase 2.

    Without any pair these figures are left out: a 0 would be one of the worst towers. So are they where there is one
    image, on which all rankings agree.

    Texts are encoded in fp32. With fewer than twenty images k is half their number: among all of them every tower finds
    every image.

    Returns:
        Percentages.
    """
    images = len(held_out.gallery)
    k = min(K, max(1, images // 2))
    found = {RECALL: _percent(recall_at_k(_rank(clip, held_out.captions, held_out.gallery, k), held_out.targets, k))}
    if held_out.first is not None and held_out.second is not None and len(held_out.first) and images > 1:
        first = _rank(clip, held_out.first, held_out.gallery, k)
        second = _rank(clip, held_out.second, held_out.gallery, k)
        found |= {AO: _percent(average_overlap(first, second, k)), JS: _percent(jaccard(first, second, k))}
        if held_out.pair_targets is not None:
            found[PARAPHRASE_RECALL] = _percent(recall_at_k(second, held_out.pair_targets, k))
    return found


def _rank(clip: ClipModel, texts: Ragged, gallery: NDArray[np.float16], k: int) -> NDArray[np.int64]:
    was_training = clip.model.training
    clip.model.eval()
    with torch.no_grad():
        queries = encode_ragged(clip, texts).float().cpu().numpy()
    clip.model.train(was_training)
    return top_k(queries, gallery, k)


def _percent(values: NDArray[np.float64]) -> float:
    return rounded(100 * float(values.mean())) if len(values) else 0.0
