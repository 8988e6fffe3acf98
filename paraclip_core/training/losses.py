"""Symmetric InfoNCE over named pairs of embeddings, with known false negatives left out.

The published method sums three of them with equal weights: image against paraphrase 2, caption against paraphrase 1,
paraphrase 1 against paraphrase 2 (ParaCLIP, arXiv 2402.15120). Each is open_clip's ``ClipLoss``: the mean of the
cross-entropies of rows and columns of the scaled cosine matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paraclip_core.config import LossWeights

__all__ = ["IMAGE", "Pair", "contrastive_loss", "false_negatives", "info_nce", "named_pairs"]

IMAGE = "image"


@dataclass(frozen=True)
class Pair:
    """Two kinds of embeddings that a loss draws together."""

    first: str
    second: str
    weight: float = 1.0

    @property
    def name(self) -> str:
        """For example ``image~paraphrase_2``."""
        return f"{self.first}~{self.second}"


def named_pairs(weights: LossWeights) -> tuple[Pair, ...]:
    """The pairs whose weight is above 0, in the order in which they are summed."""
    known = (
        Pair(IMAGE, "paraphrase_2", weights.image_paraphrase_2),
        Pair("caption", "paraphrase_1", weights.caption_paraphrase_1),
        Pair("paraphrase_1", "paraphrase_2", weights.paraphrase_1_paraphrase_2),
        Pair(IMAGE, "caption", weights.image_caption),
        Pair(IMAGE, "paraphrase_1", weights.image_paraphrase_1),
    )
    return tuple(pair for pair in known if pair.weight > 0)


def info_nce(first: Tensor, second: Tensor, scale: Tensor, left_out: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE of two lists of embeddings whose equal rows belong together.

    Args:
        first: L2-normalised float32 [n, d].
        second: L2-normalised float32 [n, d].
        scale: factor of the cosines (``logit_scale.exp()``), a scalar.
        left_out: bool [n, n]; where true, ``second[j]`` is no negative of ``first[i]``, nor the other way round.

    Returns:
        The mean over rows of both directions' cross-entropies, a scalar.
    """
    logits = scale * first @ second.T
    if left_out is not None:
        logits = logits.masked_fill(left_out, float("-inf"))
    right = logits.diagonal()
    return ((logits.logsumexp(1) - right) + (logits.logsumexp(0) - right)).mean() / 2


def false_negatives(pair: Pair, keys: Mapping[str, Tensor]) -> Tensor:
    """Which entries of a pair's matrix are not negatives although they are off the diagonal.

    Rows i and j are no negatives of each other where they share their image, or one of the pair's texts; and
    ``first[i]`` is none of ``second[j]`` where both are the same text.

    Args:
        pair: the pair.
        keys: int64 [n] for each kind (``image`` included); equal keys mean equal texts or equal images.

    Returns:
        bool [n, n], false on the diagonal.
    """
    mask = keys[IMAGE][:, None] == keys[IMAGE][None, :]
    for name in (pair.first, pair.second):
        if name != IMAGE:
            mask |= keys[name][:, None] == keys[name][None, :]
    if pair.first != IMAGE:
        mask |= keys[pair.first][:, None] == keys[pair.second][None, :]
    return mask.fill_diagonal_(False)


def contrastive_loss(
    embeddings: Mapping[str, Tensor],
    logit_scale: Tensor,
    pairs: Sequence[Pair],
    keys: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the pairs' losses, in float32 whatever the embeddings come in.

    Args:
        embeddings: L2-normalised [n, d] for each kind that a pair names.
        logit_scale: the model's logarithmic scale, a scalar.
        pairs: what is drawn together.
        keys: see :func:`false_negatives`; None keeps every negative.

    Returns:
        The sum, and each pair's own loss (detached, unweighted) by the pair's name.
    """
    with torch.autocast(logit_scale.device.type, enabled=False):
        scale = logit_scale.float().exp()
        total = torch.zeros((), device=logit_scale.device)
        parts: dict[str, Tensor] = {}
        for pair in pairs:
            left_out = false_negatives(pair, keys) if keys is not None else None
            loss = info_nce(embeddings[pair.first].float(), embeddings[pair.second].float(), scale, left_out)
            total = total + pair.weight * loss
            parts[pair.name] = loss.detach()
    return total, parts
