"""Symmetric InfoNCE over named pairs of embeddings, with known false negatives left out.

The published method sums three of them with equal weights: image against paraphrase 2, caption against paraphrase 1,
paraphrase 1 against paraphrase 2 (ParaCLIP, arXiv 2402.15120). Each is open_clip's ``ClipLoss``: the mean of the
cross-entropies of rows and columns of the scaled cosine matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from paraclip_core.config import LossWeights

__all__ = ["IMAGE", "Pair", "contrastive_loss", "false_negatives", "info_nce", "named_pairs"]

IMAGE = "image"
CHUNK_ROWS = 1024
LeftOut = Callable[[int, int], Tensor]


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


def info_nce(
    first: Tensor, second: Tensor, scale: Tensor, left_out: LeftOut | None = None, chunk_rows: int = CHUNK_ROWS
) -> Tensor:
    """Symmetric InfoNCE of two lists of embeddings whose equal rows belong together.

    The cosine matrix is computed `chunk_rows` rows at a time and never held whole, nor is it kept for the backward
    pass: gradients are computed along with the value. Memory is O(chunk_rows · n).

    Args:
        first: L2-normalised [n, d].
        second: L2-normalised [n, d].
        scale: factor of the cosines (``logit_scale.exp()``), a scalar.
        left_out: gives bool [stop - start, n] for the rows from start to stop; where true, ``second[j]`` is no negative
            of ``first[i]``, nor the other way round. It must be false on the diagonal.
        chunk_rows: rows of the matrix that are in memory at a time.

    Returns:
        The mean over rows of both directions' cross-entropies, a scalar.
    """
    loss = _ChunkedInfoNce.apply(first, second, scale, left_out, chunk_rows)
    assert isinstance(loss, Tensor)
    return loss


class _ChunkedInfoNce(torch.autograd.Function):
    """With S = scale · first · secondᵀ and its row and column log-sum-exps r and c, the gradient by S is
    (exp(S - r) + exp(S - c)) / 2n, less 1/n on the diagonal."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, first: Tensor, second: Tensor, scale: Tensor, left_out: LeftOut | None, chunk_rows: int
    ) -> Tensor:
        n = len(first)
        chunks = [(start, min(start + chunk_rows, n)) for start in range(0, n, chunk_rows)]

        def logits(start: int, stop: int) -> Tensor:
            found = scale * first[start:stop] @ second.T
            return found if left_out is None else found.masked_fill_(left_out(start, stop), float("-inf"))

        by_row, right = first.new_empty(n), first.new_empty(n)
        by_column = first.new_full((n,), float("-inf"))
        part = first.new_empty(0)
        for start, stop in chunks:
            part = logits(start, stop)
            right[start:stop] = part.diagonal(start)
            by_row[start:stop] = part.logsumexp(1)
            by_column = torch.logaddexp(by_column, part.logsumexp(0))
        if any(ctx.needs_input_grad):
            by_first, by_second = torch.empty_like(first), torch.zeros_like(second)
            for start, stop in chunks:
                # The last chunk of the first round is the first one that is needed here, if there is just one.
                part = part if len(chunks) == 1 else logits(start, stop)
                by_part = (part - by_row[start:stop, None]).exp_()
                by_part += part.sub_(by_column).exp_()
                by_part /= 2 * n
                by_part.diagonal(start).sub_(1 / n)
                torch.mm(by_part, second, out=by_first[start:stop])
                by_second.addmm_(by_part.T, first[start:stop])
            by_scale = (by_first * first).sum()
            ctx.save_for_backward(by_first.mul_(scale), by_second.mul_(scale), by_scale)
        return ((by_row - right) + (by_column - right)).mean() / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        return *(gradient * saved for saved in ctx.saved_tensors), None, None


def false_negatives(pair: Pair, keys: Mapping[str, Tensor], start: int = 0, stop: int | None = None) -> Tensor:
    """Which entries of a pair's matrix are not negatives although they are off the diagonal.

    Rows i and j are no negatives of each other where they share their image, or one of the pair's texts; and
    ``first[i]`` is none of ``second[j]`` where both are the same text.

    Args:
        pair: the pair.
        keys: int64 [n] for each kind (``image`` included); equal keys mean equal texts or equal images.
        start: first row of the matrix that is wanted.
        stop: row after the last one; None for all rows.

    Returns:
        bool [stop - start, n], false on the diagonal.
    """
    rows = slice(start, stop)
    mask = keys[IMAGE][rows, None] == keys[IMAGE][None, :]
    for name in (pair.first, pair.second):
        if name != IMAGE:
            mask |= keys[name][rows, None] == keys[name][None, :]
    if pair.first != IMAGE:
        mask |= keys[pair.first][rows, None] == keys[pair.second][None, :]
    mask.diagonal(start).fill_(False)
    return mask


def contrastive_loss(
    embeddings: Mapping[str, Tensor],
    logit_scale: Tensor,
    pairs: Sequence[Pair],
    keys: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the pairs' losses, in float32 whatever the embeddings come in.

    Args:
        embeddings: L2-normalised [n, d] for each kind that a pair names.
        logit_scale: the model's logarithmic scale, one number; a scalar or, as some models have it, of shape [1].
        pairs: what is drawn together.
        keys: see :func:`false_negatives`; None keeps every negative.

    Returns:
        The sum, and each pair's own loss (detached, unweighted) by the pair's name.
    """
    with torch.autocast(logit_scale.device.type, enabled=False):
        scale = logit_scale.float().exp().reshape(())
        total = torch.zeros((), device=logit_scale.device)
        parts: dict[str, Tensor] = {}
        for pair in pairs:
            left_out = partial(false_negatives, pair, keys) if keys is not None else None
            loss = info_nce(embeddings[pair.first].float(), embeddings[pair.second].float(), scale, left_out)
            total = total + pair.weight * loss
            parts[pair.name] = loss.detach()
    return total, parts
