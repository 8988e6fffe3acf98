"""The loss of a step and its gradients: InfoNCE over named pairs, and terms that hold the tower near its base.

The published method sums three InfoNCE terms with equal weights: image against paraphrase 2, caption against
paraphrase 1, paraphrase 1 against paraphrase 2 (ParaCLIP, arXiv 2402.15120). Each is open_clip's ``ClipLoss``, the mean
of the cross-entropies of rows and columns of the scaled cosine matrix, with known false negatives left out.

Against forgetting, ``distil`` is weight · mean(1 - cos) between the captions' embeddings and the base's. ``ranks``
trains rankings, see :mod:`paraclip_core.training.ranks`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from paraclip_core.clip.encode import Precision, computed_tokens
from paraclip_core.clip.model import ClipModel
from paraclip_core.config import LossWeights, RankOptions
from paraclip_core.training.batches import IMAGE, Prepared
from paraclip_core.training.distributed import ALONE, Processes
from paraclip_core.training.grad_cache import CachedTexts, activation_bytes, touched_vocabulary
from paraclip_core.training.memory import GIB, anonymous_memory
from paraclip_core.training.optimizer import trained_parameters
from paraclip_core.training.ranks import rank_divergence

CHUNK_ROWS = 1024
"""Rows of a cosine matrix that are in memory at a time."""
DISTIL, RANKS, CAPTION = "distil", "ranks", "caption"
TEXTS = (CAPTION, "paraphrase_1", "paraphrase_2")
"""The wordings that a row has."""
LeftOut = Callable[[int, int], Tensor]
"""Mask of the entries that are no negatives, bool [stop - start, n], of the matrix's rows from start to stop."""


@dataclass(frozen=True)
class Pair:
    """Two kinds of embeddings whose equal rows a loss draws together."""

    first: str
    second: str
    weight: float = 1.0

    @property
    def name(self) -> str:
        """For example ``image~paraphrase_2``."""
        return f"{self.first}~{self.second}"


def named_pairs(weights: LossWeights) -> tuple[Pair, ...]:
    """The pairs whose weight is above 0, in the order in which they are summed."""
    pairs = (
        Pair(IMAGE, "paraphrase_2", weights.image_paraphrase_2),
        Pair("caption", "paraphrase_1", weights.caption_paraphrase_1),
        Pair("paraphrase_1", "paraphrase_2", weights.paraphrase_1_paraphrase_2),
        Pair(IMAGE, "caption", weights.image_caption),
    )
    return tuple(pair for pair in pairs if pair.weight > 0)


def info_nce(
    first: Tensor, second: Tensor, scale: Tensor, left_out: LeftOut | None = None, chunk_rows: int = CHUNK_ROWS
) -> Tensor:
    """Symmetric InfoNCE of two lists of embeddings whose equal rows belong together.

    The cosine matrix is computed `chunk_rows` rows at a time, and gradients along with the value: nothing of the matrix
    is kept for the backward pass. Memory is O(chunk_rows · n).

    Args:
        first: L2-normalized [n, d].
        second: L2-normalized [n, d].
        scale: factor of the cosines (``logit_scale.exp()``), a scalar.
        left_out: where its mask is true, ``second[j]`` and ``first[i]`` are no negatives of each other. It must be
            false on the diagonal.
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
            part = scale * first[start:stop] @ second.T
            return part if left_out is None else part.masked_fill_(left_out(start, stop), float("-inf"))

        row_sums, diagonal = first.new_empty(n), first.new_empty(n)
        column_sums = first.new_full((n,), float("-inf"))
        part = first.new_empty(0)
        for start, stop in chunks:
            part = logits(start, stop)
            diagonal[start:stop] = part.diagonal(start)
            row_sums[start:stop] = part.logsumexp(1)
            column_sums = torch.logaddexp(column_sums, part.logsumexp(0))
        if any(ctx.needs_input_grad):
            grad_first, grad_second = torch.empty_like(first), torch.zeros_like(second)
            for start, stop in chunks:
                # A single chunk's logits are still there.
                part = part if len(chunks) == 1 else logits(start, stop)
                grad_part = (part - row_sums[start:stop, None]).exp_()
                grad_part += part.sub_(column_sums).exp_()
                grad_part /= 2 * n
                grad_part.diagonal(start).sub_(1 / n)
                torch.mm(grad_part, second, out=grad_first[start:stop])
                grad_second.addmm_(grad_part.T, first[start:stop])
            grad_scale = (grad_first * first).sum()
            ctx.save_for_backward(grad_first.mul_(scale), grad_second.mul_(scale), grad_scale)
        return ((row_sums - diagonal) + (column_sums - diagonal)).mean() / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        return *(gradient * saved for saved in ctx.saved_tensors), None, None


def false_negatives(pair: Pair, keys: Mapping[str, Tensor], start: int = 0, stop: int | None = None) -> Tensor:
    """Entries of a pair's matrix that are no negatives although they are off the diagonal.

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
        embeddings: L2-normalized [n, d] for each kind that a pair names.
        logit_scale: the model's logarithmic scale, one number; a scalar or, as some models have it, of shape [1].
        pairs: the terms.
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


class Anchor:
    """The base as it was when training began."""

    def __init__(self, clip: ClipModel, distil: float, ranks: RankOptions | None = None) -> None:
        """Copy what the terms need of the model as it is; a weight of 0 leaves a term out."""
        self.distil, self.ranks = distil, ranks or RankOptions()
        self._tower: ClipModel | None = None
        if distil or self.ranks.weight:
            # The image tower is large and stays the same, so it is shared.
            self._tower = replace(clip, model=copy.deepcopy(clip.model, {id(clip.visual): clip.visual}))
            self._tower.model.requires_grad_(False)
            self._tower.model.eval()

    def terms(
        self,
        prepared: Prepared,
        embeddings: Mapping[str, Tensor],
        precision: Precision,
        most_bytes: float,
        processes: Processes,
    ) -> dict[str, tuple[float, Tensor]]:
        """Weight and value, a scalar with history, of each term that looks at the base's embeddings, by name.

        `precision`, `most_bytes` and `processes` are as :class:`CachedTexts` takes them.
        """
        if self._tower is None:
            return {}
        all_wordings = bool(self.ranks.weight) and self.ranks.teacher == "wordings"
        tokens = prepared.tokens if all_wordings else prepared.batch.texts[CAPTION]
        texts = CachedTexts(
            self._tower, tokens, precision=precision, keep=False, most_bytes=most_bytes, processes=processes
        )
        base, terms = texts.embed(), {}
        captions = base[prepared.parts[CAPTION]] if all_wordings else base
        if self.distil:
            terms[DISTIL] = (self.distil, (1 - (embeddings[CAPTION] * captions).sum(1)).mean())
        if self.ranks.weight:
            mean = torch.stack([base[prepared.parts[kind]] for kind in TEXTS]).mean(0) if all_wordings else captions
            wordings, gallery = [embeddings[kind] for kind in TEXTS], prepared.gallery(base.device)
            divergence = rank_divergence(wordings, normalize(mean, dim=-1), gallery, self.ranks.temperature)
            terms[RANKS] = (self.ranks.weight, divergence)
        return terms


@dataclass(frozen=True)
class Objective:
    """The loss of a step and its gradients."""

    clip: ClipModel
    pairs: Sequence[Pair]
    precision: Precision = "fp32"
    memory_gib: float = 4.0
    """Memory for what the backward pass needs of a batch; larger batches are embedded twice."""
    anchor: Anchor | None = None
    processes: Processes = ALONE
    taken: int = field(default_factory=anonymous_memory)
    """Bytes of this process before the first batch."""

    def gradients(self, prepared: Prepared, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the gradients of a batch's loss to the parameters' ``grad``.

        Args:
            prepared: the batch.
            seed: of the dropout, where the tower has any.

        Returns:
            The loss, and each term without its weight, by name; scalars without history, the same in every process.
        """
        clip, anchor = self.clip, self.anchor
        scale, parameters = clip.model.get_parameter("logit_scale"), trained_parameters(clip.model)
        # The scale's gradient comes from the whole batch.
        tower = [parameter for parameter in parameters.values() if parameter is not scale]
        most_bytes = self.taken + self.memory_gib * GIB
        with touched_vocabulary(clip, prepared.tokens) as vocabulary:
            texts = CachedTexts(
                clip,
                prepared.tokens,
                precision=self.precision,
                keep=self.fits(prepared),
                most_bytes=most_bytes,
                seed=seed,
                processes=self.processes,
            )
            text_embeddings = texts.embed().requires_grad_()
            embeddings = prepared.embeddings(text_embeddings)
            loss, terms = contrastive_loss(embeddings, scale, self.pairs, prepared.key_tensors(clip.device))
            if anchor is not None:
                held = anchor.terms(prepared, embeddings, self.precision, most_bytes, self.processes)
                for name, (weight, value) in held.items():
                    loss, terms = loss + weight * value, terms | {name: value.detach()}
            loss.backward()
            assert text_embeddings.grad is not None
            texts.backward(text_embeddings.grad, [*vocabulary, *tower])
        self.processes.sum_gradients(tower)
        return loss.detach(), terms

    def fits(self, prepared: Prepared) -> bool:
        """Whether this process's share of the batch can be kept for the backward pass."""
        tokens = computed_tokens(self.clip, prepared.tokens) / self.processes.count
        return tokens * activation_bytes(self.clip, self.precision) <= self.memory_gib * GIB
