"""The loss of a step and its gradients: contrastive losses over named pairs, and terms against forgetting.

The published method sums three InfoNCE terms with equal weights: image against paraphrase 2, caption against
paraphrase 1, paraphrase 1 against paraphrase 2 (ParaCLIP, arXiv 2402.15120). Each is open_clip's ``ClipLoss``, the mean
of the cross-entropies of rows and columns of the scaled cosine matrix, with known false negatives left out.

If the base has a logit bias (SigLIP, arXiv 2303.15343), pairs with an image use open_clip's ``SigLipLoss`` instead,
with the base's own scale and bias. Pairs of texts keep InfoNCE: their cosines are far above those of a text and an
image, for which the bias was learned.

Hard negatives (:mod:`paraclip_core.training.hard_negatives`) are one more negative of their row in both directions of
the pairs of texts. log w is added to their logits, so that with weight w each counts as w negatives.

Two terms are against forgetting. The mean of the base's features of caption and paraphrases retrieves better than a
single text; it is what query expansion searches with. Feature distillation is weight · mean(1 - cos) between every text
of a row and that mean, or between the caption and its own feature; it needs no image. By ranking distillation every
text of a row learns to rank images as the base does for that mean, or for the caption. Over the images of the batch,
with
p = softmax(T · base's feature · images) and q = softmax(T · text · images), it is the mean of KL(p ‖ q): ListNet's
top-one probabilities (Cao et al., ICML 2007). The contrastive losses pull single pairs together and affect rankings
only indirectly; this one trains what AO@k and recall@k measure. A hard negative is one more text, with a third of the
weight as each of the three, but it has a teacher of its own: it keeps the base's ranking for the hard negative itself.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize, softplus

from paraclip_core.clip.encode import Precision, computed_tokens
from paraclip_core.clip.model import LOGITS, ClipModel, trained_parameters
from paraclip_core.clip.ragged import Ragged
from paraclip_core.training.data import CAPTION, HARD_NEGATIVE, IMAGE, TEXTS, Batch
from paraclip_core.training.grad_cache import CachedTexts, activation_bytes, touched_vocabulary
from paraclip_core.training.options import LossWeights, RankingDistillation
from paraclip_core.training.process import GIB, anonymous_memory

CHUNK_ROWS = 1024
"""Rows of a cosine matrix in memory at a time."""
RANKING_CELLS = 1 << 22
"""Similarities of one kind of text to images in memory at a time."""
RANKING_TEMPERATURE = 50.0
"""Factor of the cosines in the softmaxes of rankings: the larger it is, the more the first ranks count."""
FEATURE_DISTILLATION, RANKING_DISTILLATION = "feature_distillation", "ranking_distillation"
HARD_NEGATIVE_RANKING = "hard_negative_ranking"
LeftOut = Callable[[int, int], Tensor]
"""Mask of entries that are not negatives, bool [stop - start, n], for the matrix's rows from start to stop."""


@dataclass(frozen=True)
class Pair:
    """Two kinds of embeddings whose corresponding rows a loss pulls together."""

    first: str
    second: str
    weight: float = 1.0
    hard_negatives: float = 0.0
    """Weight of the rows' hard negatives among the negatives; 0: none."""

    @property
    def name(self) -> str:
        """For example ``image~paraphrase_2``."""
        return f"{self.first}~{self.second}"


def named_pairs(weights: LossWeights) -> tuple[Pair, ...]:
    """The pairs whose weight is above 0, in the order in which they are summed."""
    hard = weights.hard_negatives
    pairs = (
        Pair(IMAGE, "paraphrase_2", weights.image_paraphrase_2),
        Pair("caption", "paraphrase_1", weights.caption_paraphrase_1, hard),
        Pair("paraphrase_1", "paraphrase_2", weights.paraphrase_1_paraphrase_2, hard),
        Pair(IMAGE, "caption", weights.image_caption),
    )
    return tuple(pair for pair in pairs if pair.weight > 0)


@dataclass(frozen=True)
class OneMore:
    """One more negative for each row of a pair."""

    embeddings: Tensor
    """[n, d], L2-normalized."""
    log_weights: Tensor
    """What is added to the logits, [n]: 0 for a plain negative, -inf for a row that has none."""


def info_nce(
    first: Tensor,
    second: Tensor,
    scale: Tensor,
    left_out: LeftOut | None = None,
    chunk_rows: int = CHUNK_ROWS,
    one_more: OneMore | None = None,
) -> Tensor:
    """Symmetric InfoNCE of two lists of L2-normalized embeddings, [n, d], whose corresponding rows belong together.

    The mean over rows of both directions' cross-entropies, a scalar; `scale` (``logit_scale.exp()``) multiplies the
    cosines. Where `left_out` is true, ``second[j]`` and ``first[i]`` are not negatives of each other; it must be
    false on the diagonal. `one_more` has another negative of both ``first[i]`` and ``second[i]``. The matrix is
    computed `chunk_rows` rows at a time, and gradients along with the value: memory is O(chunk_rows · n).
    """
    negatives = (None, None) if one_more is None else (one_more.embeddings, one_more.log_weights)
    loss = _ChunkedInfoNce.apply(first, second, scale, negatives[0], left_out, chunk_rows, negatives[1])
    assert isinstance(loss, Tensor)
    return loss


class _Precomputed(torch.autograd.Function):
    """A function whose forward pass saves the gradients of its first arguments, None for one that is not there."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        gradients = [None if saved is None else gradient * saved for saved in ctx.saved_tensors]
        return *gradients, *[None] * (len(ctx.needs_input_grad) - len(gradients))


class _ChunkedInfoNce(_Precomputed):
    """With S = scale · first · secondᵀ and its row and column log-sum-exps r and c, the gradient with respect to S is
    (exp(S - r) + exp(S - c)) / 2n, minus 1/n on the diagonal. r and c include the logits h = scale · first · more and
    k = scale · second · more of one more negative of each row, if there is one, whose gradients are exp(h - r) / 2n and
    exp(k - c) / 2n."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        first: Tensor,
        second: Tensor,
        scale: Tensor,
        more: Tensor | None,
        left_out: LeftOut | None,
        chunk_rows: int,
        log_weights: Tensor | None,
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
        row_share = column_share = first.new_empty(0)
        if more is not None and log_weights is not None:
            row_more, column_more = (scale * (texts * more).sum(1) + log_weights for texts in (first, second))
            row_sums, column_sums = torch.logaddexp(row_sums, row_more), torch.logaddexp(column_sums, column_more)
            row_share, column_share = (row_more - row_sums).exp_()[:, None], (column_more - column_sums).exp_()[:, None]
        if any(ctx.needs_input_grad):
            grad_first, grad_second = torch.empty_like(first), torch.zeros_like(second)
            for start, stop in chunks:
                # The logits of a single chunk are still in memory.
                part = part if len(chunks) == 1 else logits(start, stop)
                grad_part = (part - row_sums[start:stop, None]).exp_()
                grad_part += part.sub_(column_sums).exp_()
                grad_part /= 2 * n
                grad_part.diagonal(start).sub_(1 / n)
                torch.mm(grad_part, second, out=grad_first[start:stop])
                grad_second.addmm_(grad_part.T, first[start:stop])
            grad_scale, grad_more = (grad_first * first).sum(), None
            if more is not None:
                grad_more = (row_share * first + column_share * second).div_(2 * n)
                grad_scale += (grad_more * more).sum()
                grad_first.addcmul_(row_share, more, value=1 / (2 * n))
                grad_second.addcmul_(column_share, more, value=1 / (2 * n))
                grad_more.mul_(scale)
            ctx.save_for_backward(grad_first.mul_(scale), grad_second.mul_(scale), grad_scale, grad_more)
        return ((row_sums - diagonal) + (column_sums - diagonal)).mean() / 2


def pairwise_sigmoid(
    first: Tensor,
    second: Tensor,
    scale: Tensor,
    bias: Tensor,
    left_out: LeftOut | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> Tensor:
    """SigLIP's loss: each entry of the matrix is classified independently as a pair or not.

    The sum of -log sigmoid(±(scale · cosine + bias)) over the matrix, + on its diagonal, divided by n; otherwise like
    :func:`info_nce`.
    """
    loss = _ChunkedSigmoid.apply(first, second, scale, bias, left_out, chunk_rows)
    assert isinstance(loss, Tensor)
    return loss


class _ChunkedSigmoid(_Precomputed):
    """With S = scale · first · secondᵀ + bias, the gradient of S is sigmoid(S) / n, minus 1/n on the diagonal."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, first: Tensor, second: Tensor, scale: Tensor, bias: Tensor, left_out: LeftOut | None, chunk_rows: int
    ) -> Tensor:
        n, total, grad_bias = len(first), first.new_zeros(()), first.new_zeros(())
        grad_first, grad_second = torch.empty_like(first), torch.zeros_like(second)
        for start in range(0, n, chunk_rows):
            stop = min(start + chunk_rows, n)
            part = (scale * first[start:stop] @ second.T).add_(bias)
            if left_out is not None:
                part.masked_fill_(left_out(start, stop), float("-inf"))
            total += softplus(part).sum() - part.diagonal(start).sum()
            part.sigmoid_().diagonal(start).sub_(1)
            torch.mm(part, second, out=grad_first[start:stop])
            grad_second.addmm_(part.T, first[start:stop])
            grad_bias += part.sum()
        grad_scale = (grad_first * first).sum()
        gradients = (grad_first.mul_(scale), grad_second.mul_(scale), grad_scale, grad_bias)
        ctx.save_for_backward(*(gradient.div_(n) for gradient in gradients))
        return total / n


def false_negatives(pair: Pair, keys: Mapping[str, Tensor], start: int = 0, stop: int | None = None) -> Tensor:
    """Off-diagonal entries of a pair's matrix that are not negatives, bool [stop - start, n].

    Rows i and j are not negatives of each other if they share their image or one of the pair's texts, and neither are
    ``first[i]`` and ``second[j]`` if both are the same text. Equal `keys`, int64 [n] per kind, mean equal texts or
    images.
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


def hard_negatives(embeddings: Tensor, weight: float, keys: Mapping[str, Tensor] | None = None) -> OneMore:
    """The hard negatives of rows, [n, d]; one that is the same text as another of its row is no negative."""
    log_weights = embeddings.new_full((len(embeddings),), math.log(weight))
    if keys is not None:
        for kind in keys.keys() & {*TEXTS}:
            log_weights.masked_fill_(keys[HARD_NEGATIVE] == keys[kind], float("-inf"))
    return OneMore(embeddings, log_weights)


def contrastive_loss(
    embeddings: Mapping[str, Tensor],
    logit_scale: Tensor,
    pairs: Sequence[Pair],
    keys: Mapping[str, Tensor] | None = None,
    logit_bias: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the pairs' losses, in float32; embeddings are L2-normalized, [n, d] per kind, of any dtype.

    The model's logarithmic scale and its bias are scalars or, in some models, of shape [1]. With a bias, image pairs
    use :func:`pairwise_sigmoid`. Without `keys` (see :func:`false_negatives`) every negative counts. Returns the sum,
    and each pair's own loss (detached, unweighted) by the pair's name.
    """
    with torch.autocast(logit_scale.device.type, enabled=False):
        scale = logit_scale.float().exp().reshape(())
        total = torch.zeros((), device=logit_scale.device)
        parts: dict[str, Tensor] = {}
        for pair in pairs:
            left_out = partial(false_negatives, pair, keys) if keys is not None else None
            first, second = embeddings[pair.first].float(), embeddings[pair.second].float()
            if logit_bias is not None and pair.first == IMAGE:
                loss = pairwise_sigmoid(first, second, scale, logit_bias.float().reshape(()), left_out)
            else:
                more = None
                if pair.hard_negatives:
                    more = hard_negatives(embeddings[HARD_NEGATIVE].float(), pair.hard_negatives, keys)
                loss = info_nce(first, second, scale, left_out, one_more=more)
            total = total + pair.weight * loss
            parts[pair.name] = loss.detach()
    return total, parts


def ranking_divergence(texts: Sequence[Tensor], teacher: Tensor, gallery: Tensor, temperature: float) -> Tensor:
    """Mean of KL(the teacher's ranking ‖ that of a text) over rows and texts, in nats.

    `texts` and `teacher` are of the same n captions, float32 [n, d], `gallery` has image features, [m, d], all of
    length 1. The larger `temperature`, a factor of the cosines, the more the first ranks count. Similarities are
    computed some rows at a time, and gradients, only for the texts, along with the value.
    """
    divergence = _RankingDivergence.apply(teacher, gallery, temperature, *texts)
    assert isinstance(divergence, Tensor)
    return divergence


class _RankingDivergence(torch.autograd.Function):
    """The gradient with respect to a text's similarities T · text · images is (q - p) / (rows · texts)."""

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, gallery: Tensor, temperature: float, *texts: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, count = max(1, RANKING_CELLS // len(gallery)), len(teacher) * len(texts)
        total = teacher.new_zeros(())
        gradients = [torch.empty_like(text) for text in texts] if any(ctx.needs_input_grad) else []
        scaled = temperature * gallery
        for start in range(0, len(teacher), rows):
            part = slice(start, start + rows)
            targets = torch.log_softmax(teacher[part] @ scaled.T, 1)
            shares = targets.exp()
            for number, text in enumerate(texts):
                logs = torch.log_softmax(text[part] @ scaled.T, 1)
                total += (shares * (targets - logs)).sum()
                if gradients:
                    gradients[number][part] = logs.exp_().sub_(shares) @ scaled
        ctx.save_for_backward(*(gradient.div_(count) for gradient in gradients))
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        return None, None, None, *(gradient * saved for saved in ctx.saved_tensors)


class Anchor:
    """The base at the start of training, and the loss terms that refer to it."""

    def __init__(
        self, clip: ClipModel, features: float, ranks: RankingDistillation, hard_negatives: float = 0.0
    ) -> None:
        """Copy the current text encoder; `features` and `hard_negatives` are weights of their terms, 0 for none."""
        self.features, self.ranks, self.hard_negatives = features, ranks, hard_negatives
        # The image encoder is large and does not change, so it is shared.
        self.clip = replace(clip, model=copy.deepcopy(clip.model, {id(clip.visual): clip.visual}))
        self.clip.model.requires_grad_(False)
        self.clip.model.eval()

    def embeddings(self, batch: Batch, embed: Callable[[ClipModel, Ragged], Tensor]) -> Mapping[str, Tensor]:
        """The base's embeddings of the texts that the terms use, float32 [n, d] per kind."""
        hard = (HARD_NEGATIVE,) if self.ranks.weight and self.hard_negatives else ()
        if self.ranks.teacher == "mean":
            texts = embed(self.clip, batch.tokens)
            return {kind: texts[batch.parts[kind]] for kind in (*TEXTS, *hard)}
        kinds = (CAPTION, *hard)
        texts = embed(self.clip, Ragged.concatenate([batch.texts(kind) for kind in kinds]))
        return dict(zip(kinds, texts.chunk(len(kinds)), strict=True))

    def terms(
        self, batch: Batch, embeddings: Mapping[str, Tensor], base: Mapping[str, Tensor]
    ) -> dict[str, tuple[float, Tensor]]:
        """Weight and value (a scalar with gradient) of each term by name; `base` holds the base's embeddings."""
        terms = {}
        taught = [kind for kind in TEXTS if kind in base]
        teacher = normalize(torch.stack([base[kind] for kind in taught]).sum(0), dim=-1)
        if self.features:
            cosines = torch.stack([embeddings[kind] for kind in taught]).mul(teacher).sum(-1)
            terms[FEATURE_DISTILLATION] = (self.features, (1 - cosines).mean())
        if self.ranks.weight:
            texts, gallery = [embeddings[kind] for kind in TEXTS], batch.gallery(base[CAPTION].device)
            terms[RANKING_DISTILLATION] = (
                self.ranks.weight,
                ranking_divergence(texts, teacher, gallery, RANKING_TEMPERATURE),
            )
            if self.hard_negatives:
                own = [embeddings[HARD_NEGATIVE]]
                terms[HARD_NEGATIVE_RANKING] = (
                    self.ranks.weight / len(TEXTS) * self.hard_negatives,
                    ranking_divergence(own, base[HARD_NEGATIVE], gallery, RANKING_TEMPERATURE),
                )
        return terms


@dataclass(frozen=True)
class Objective:
    """The loss of a step and its gradients."""

    clip: ClipModel
    pairs: Sequence[Pair]
    precision: Precision = "fp32"
    memory_gib: float = 4.0
    """Memory for the backward pass of a batch; batches that need more are embedded twice."""
    anchor: Anchor | None = None
    taken: int = field(default_factory=anonymous_memory)
    """Memory of this process before the first batch, in bytes."""

    def gradients(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the gradients of a batch's loss to the parameters' ``grad``.

        Returns the loss, and each unweighted term by name.
        """
        clip, anchor = self.clip, self.anchor
        scale, bias = clip.model.get_parameter("logit_scale"), getattr(clip.model, "logit_bias", None)
        # The gradients of scale and bias come from the whole batch.
        encoder = [parameter for name, parameter in trained_parameters(clip.model).items() if name not in LOGITS]
        cached = partial(CachedTexts, precision=self.precision, most_bytes=self.taken + self.memory_gib * GIB)
        with touched_vocabulary(clip, batch.tokens) as vocabulary:
            texts = cached(clip, batch.tokens, keep=self.fits(batch))
            text_embeddings = texts.embed().requires_grad_()
            embeddings = batch.embeddings(text_embeddings)
            loss, terms = contrastive_loss(embeddings, scale, self.pairs, batch.key_tensors(clip.device), bias)
            if anchor is not None:
                base = anchor.embeddings(batch, lambda clip, texts: cached(clip, texts, keep=False).embed())
                for name, (weight, value) in anchor.terms(batch, embeddings, base).items():
                    loss, terms = loss + weight * value, terms | {name: value.detach()}
            loss.backward()
            assert text_embeddings.grad is not None
            texts.backward(text_embeddings.grad, [*vocabulary, *encoder])
        return loss.detach(), terms

    def fits(self, batch: Batch) -> bool:
        """Whether the batch can be kept for the backward pass."""
        tokens = computed_tokens(self.clip, batch.tokens)
        return tokens * activation_bytes(self.clip, self.precision) <= self.memory_gib * GIB
