"""Validation on held-out images: what a text encoder finds there, image by image.

Stored features are ranked, so no image is encoded: the small built-in base takes a second or two, ViT-B-32 half a
minute on two cores. Every figure is the sum of its images'
contributions: the difference of two encoders, and how certain it is, follows from the same images for both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from paraclip_core.clip.encode import encode_ragged
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.ragged import Ragged
from paraclip_core.evaluation.intervals import CONFIDENCE
from paraclip_core.evaluation.metrics import average_overlap, jaccard, recall_at_k
from paraclip_core.evaluation.scores import top_k
from paraclip_core.training.log import rounded

K = 10
AO, JS = f"ao@{K}", f"js@{K}"
RECALL = f"text_to_image_recall@{K}"
PARAPHRASE_RECALL = f"paraphrase_recall@{K}"
OVERLAP = f"overlap@{K}"
"""Share of the base's first images that a plain caption still finds among the first: what does not change for users."""
Parts: TypeAlias = NDArray[np.float64]
"""Contribution of each held-out image (or query of a log) to a figure, in points, [m]; their sum is the figure."""


@dataclass(frozen=True)
class ValidationSet:
    """Images held out from training, and the texts that search for them."""

    gallery: NDArray[np.float16]
    """Stored features of the distinct images, [m, d]."""
    captions: Ragged
    """Queries."""
    targets: NDArray[np.int64] | None = None
    """Gallery row of each caption's image; None for queries of a log, whose right images nobody knows: what was clicked
    is what the base showed."""
    first: Ragged | None = None
    """Captions of rows with paraphrases, for the overlap of the two rankings."""
    second: Ragged | None = None
    """Paraphrase 2 of the same rows."""
    pair_targets: NDArray[np.int64] | None = None
    """Gallery row of the image of each of these rows; None for a log."""

    @property
    def clusters(self) -> NDArray[np.int64]:
        """For each caption what its contributions are counted with: its image, or itself."""
        return np.arange(len(self.captions)) if self.targets is None else self.targets

    @property
    def pair_clusters(self) -> NDArray[np.int64]:
        """The same for each pair; those of a log are its captions."""
        return self.clusters if self.pair_targets is None else self.pair_targets

    @property
    def count(self) -> int:
        """Number of clusters."""
        return len(self.captions if self.targets is None else self.gallery)


@dataclass(frozen=True)
class Validation:
    """What one encoder finds."""

    figures: Mapping[str, float]
    """In percent, rounded."""
    parts: Mapping[str, Parts] = field(repr=False)
    """The contributions of the images to the same figures."""
    found: NDArray[np.int64] = field(repr=False)
    """The first images of each caption, [n, k]."""


def measure(clip: ClipModel, held_out: ValidationSet) -> Validation:
    """Recall@10 of the captions and, if there are pairs, AO@10, JS@10 and recall@10 of paraphrase 2.

    Queries of a log have no recall.

    AO and JS are left out without pairs, since 0 would mean a bad encoder, and with a single image, on which all
    rankings agree. With fewer than twenty images k is half their number, since with k as large as the gallery every
    encoder finds every image.
    """
    images = len(held_out.gallery)
    k = min(K, max(1, images // 2))
    found, parts = _rank(clip, held_out.captions, held_out.gallery, k), dict[str, Parts]()

    if held_out.targets is not None:
        parts[RECALL] = _by_cluster(recall_at_k(found, held_out.targets, k), held_out.clusters, held_out.count)
    if held_out.first is not None and held_out.second is not None and len(held_out.first) and images > 1:
        # The pairs of a log are its captions.
        first = found if held_out.first is held_out.captions else _rank(clip, held_out.first, held_out.gallery, k)
        second = _rank(clip, held_out.second, held_out.gallery, k)
        values = {AO: average_overlap(first, second, k), JS: jaccard(first, second, k)}
        if held_out.pair_targets is not None:
            values[PARAPHRASE_RECALL] = recall_at_k(second, held_out.pair_targets, k)
        parts |= {name: _by_cluster(each, held_out.pair_clusters, held_out.count) for name, each in values.items()}
    return summed(parts, found)


def with_overlap(validation: Validation, base: Validation, held_out: ValidationSet) -> Validation:
    """The validation with the share of the base's first images that each caption still finds (:data:`OVERLAP`)."""
    stays = (validation.found[:, :, None] == base.found[:, None, :]).any(1).mean(1)
    overlap = _by_cluster(stays, held_out.clusters, held_out.count)
    return summed({**validation.parts, OVERLAP: overlap}, validation.found)


def _by_cluster(values: NDArray[np.floating], clusters: NDArray[np.int64], count: int) -> Parts:
    """The contributions of the clusters to the mean of the values, which are shares of queries in these clusters."""
    return np.bincount(clusters, 100 * values.astype(np.float64) / max(len(values), 1), count).astype(np.float64)


def summed(parts: Mapping[str, Parts], found: NDArray[np.int64]) -> Validation:
    """The validation with these contributions, and the first images of each caption, [n, k]."""
    return Validation({name: rounded(float(each.sum())) for name, each in parts.items()}, parts, found)


def _rank(clip: ClipModel, texts: Ragged, gallery: NDArray[np.float16], k: int) -> NDArray[np.int64]:
    """The nearest images of each text, encoded in eval mode; the model's mode is restored."""
    training = clip.model.training
    clip.model.eval()
    with torch.no_grad():
        embeddings = encode_ragged(clip, texts).float().cpu().numpy()
    clip.model.train(training)
    return top_k(embeddings, gallery, k)


def interval(difference: Parts, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Half the width of the interval of a difference of two encoders, and its standard error, in points.

    `difference` has the difference of the images' contributions. Images are independent, so the variance of their sum
    is m times the variance of a contribution (the cluster-robust variance of a mean; Cameron & Miller, A Practitioner's
    Guide to Cluster-Robust Inference, 2015, sec. II).
    """
    count = len(difference)
    error = math.sqrt(count * float(difference.var(ddof=1))) if count > 1 else math.inf
    return NormalDist().inv_cdf((1 + confidence) / 2) * error, error
