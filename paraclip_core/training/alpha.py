"""Validation on held-out images, and the choice of the interpolation with the base.

Against forgetting, the tuned text encoder is interpolated with the base's (WiSE-FT, arXiv 2109.01903):
θ_α = (1 - α) · θ_base + α · θ_tuned. Validation ranks stored features and takes a second or two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from paraclip_core.clip.encode import encode_ragged
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.ragged import Ragged
from paraclip_core.evaluation.metrics import average_overlap, jaccard, recall_at_k
from paraclip_core.evaluation.scores import top_k
from paraclip_core.training.log import rounded
from paraclip_core.training.options import AlphaOptions

K = 10
AO, JS = f"ao@{K}", f"js@{K}"
RECALL = f"text_to_image_recall@{K}"
PARAPHRASE_RECALL = f"paraphrase_recall@{K}"


@dataclass(frozen=True)
class ValidationSet:
    """Images held out from training, and the texts that search for them."""

    gallery: NDArray[np.float16]
    """Stored features of the distinct images, [m, d]."""
    captions: Ragged
    """Queries."""
    targets: NDArray[np.int64]
    """Gallery row of each caption's image."""
    first: Ragged | None = None
    """Captions of rows with paraphrases, for the overlap of the two rankings."""
    second: Ragged | None = None
    """Paraphrase 2 of the same rows."""
    pair_targets: NDArray[np.int64] | None = None
    """Gallery row of the image of each of these rows."""


def measure(clip: ClipModel, held_out: ValidationSet) -> dict[str, float]:
    """Recall@10 of the captions and, if there are pairs, AO@10 and JS@10 between caption and paraphrase 2; percent.

    AO and JS are left out without pairs, since 0 would mean a bad encoder, and with a single image, on which all
    rankings agree. With fewer than twenty images k is half their number, since with k as large as the gallery every
    encoder finds every image.
    """
    images = len(held_out.gallery)
    k = min(K, max(1, images // 2))
    figures = {RECALL: _percent(recall_at_k(_rank(clip, held_out.captions, held_out.gallery, k), held_out.targets, k))}
    if held_out.first is not None and held_out.second is not None and len(held_out.first) and images > 1:
        first = _rank(clip, held_out.first, held_out.gallery, k)
        second = _rank(clip, held_out.second, held_out.gallery, k)
        figures |= {AO: _percent(average_overlap(first, second, k)), JS: _percent(jaccard(first, second, k))}
        if held_out.pair_targets is not None:
            figures[PARAPHRASE_RECALL] = _percent(recall_at_k(second, held_out.pair_targets, k))
    return figures


def _rank(clip: ClipModel, texts: Ragged, gallery: NDArray[np.float16], k: int) -> NDArray[np.int64]:
    """The nearest images of each text, encoded in eval mode; the model's mode is restored."""
    training = clip.model.training
    clip.model.eval()
    with torch.no_grad():
        embeddings = encode_ragged(clip, texts).float().cpu().numpy()
    clip.model.train(training)
    return top_k(embeddings, gallery, k)


def _percent(values: NDArray[np.float64]) -> float:
    return rounded(100 * float(values.mean())) if len(values) else 0.0


def copy_weights(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """A copy of the current weights."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def interpolate(
    parameters: Mapping[str, nn.Parameter], base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float
) -> None:
    """Set the parameters to (1 - α) · base + α · tuned; at 0 and 1 bit-identical to the base's or the tuned ones."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            if alpha in (0.0, 1.0):
                parameter.copy_(tuned[name] if alpha else base[name])
            else:
                parameter.copy_(torch.lerp(base[name].float(), tuned[name].float(), alpha))


def sweep(
    parameters: Mapping[str, nn.Parameter],
    base: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    grid: Sequence[float],
    measure: Callable[[], Mapping[str, float]],
) -> list[dict[str, float]]:
    """Measure every α of the grid, and 0, the rule's reference; in increasing order."""
    points = []
    for alpha in sorted({0.0, *grid}):
        interpolate(parameters, base, tuned, alpha)
        points.append({"alpha": alpha, **measure()})
    return points


def choose_alpha(points: Sequence[Mapping[str, float]], rule: AlphaOptions) -> dict[str, Any]:
    """Choose among the points of a sweep, in percent; returns ``alpha_sweep.json`` with the points and the rule.

    Without pairs there is no overlap, and the largest α within the limit wins: falling back to the base would undo the
    training because of an unmeasured figure.
    """
    floor = points[0][RECALL] - rule.max_recall_drop
    # Recalls are rounded, so a drop of exactly the limit must not fail because of its last binary digit.
    allowed = [point for point in points if point[RECALL] >= floor - 1e-9]
    within = f"{RECALL} is at most {rule.max_recall_drop:g} points below that of α = 0 (the base)"
    if AO in points[0]:
        chosen = max(allowed, key=lambda point: (point[AO] + rule.recall_weight * point[RECALL], -point["alpha"]))
        highest = f"{AO} + {rule.recall_weight:g} · {RECALL}" if rule.recall_weight else AO
        words = f"highest {highest} on validation among the α whose {within}; the smaller α where two are equal"
    else:
        chosen = max(allowed, key=lambda point: point["alpha"])
        words = (
            f"highest α whose {within}; {AO} could not be looked at, because one image alone is held out for "
            "validation, or none that has a row with paraphrases (raise finetune.validation, or paraphrase.fraction if "
            "it is below 1)"
        )
    return {"alphas": [dict(point) for point in points], "chosen": chosen["alpha"], "rule": words}
