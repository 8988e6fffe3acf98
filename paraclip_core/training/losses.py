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
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from paraclip_core.clip.encode import Precision
from paraclip_core.clip.model import LOGITS, ClipModel, trained_parameters
from paraclip_core.clip.ragged import Ragged
from paraclip_core.training.data import CAPTION, HARD_NEGATIVE, IMAGE, TEXTS, Batch
from paraclip_core.training.grad_cache import CachedTexts
from paraclip_core.training.options import LossWeights, RankingDistillation

BLOCK_ROWS = 4096
"""Rows of a cosine matrix in memory at a time."""
RANKING_CELLS = 1 << 22
"""Similarities of one kind of text to images in memory at a time."""
RANKING_TEMPERATURE = 50.0
"""Factor of the cosines in the softmaxes of rankings: the larger it is, the more the first ranks count."""
FEATURE_DISTILLATION, RANKING_DISTILLATION = "feature_distillation", "ranking_distillation"
HARD_NEGATIVE_RANKING = "hard_negative_ranking"
ALL = slice(None)
LeftOut = Callable[[slice, slice], Tensor]
"""Mask of entries that are not negatives, bool, for some rows and columns of the matrix."""


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


def in_blocks(part: Callable[[slice], Tensor], rows: int, block_rows: int) -> Tensor:
    """Sum of `part` over blocks of rows.

    If there are several, each is computed again for its gradients, so that the matrix of only one is in memory.
    """
    blocks = [slice(start, min(start + block_rows, rows)) for start in range(0, rows, block_rows)]
    if len(blocks) == 1:
        return part(blocks[0])
    return torch.stack([checkpoint(part, block, use_reentrant=False) for block in blocks]).sum()


def info_nce(
    first: Tensor, second: Tensor, scale: Tensor, left_out: LeftOut | None = None, one_more: OneMore | None = None
) -> Tensor:
    """Symmetric InfoNCE of two lists of L2-normalized embeddings, [n, d], whose corresponding rows belong together.

    The mean over rows of both directions' cross-entropies, a scalar; `scale` (``logit_scale.exp()``) multiplies the
    cosines. Where `left_out` is true, ``second[j]`` and ``first[i]`` are not negatives of each other; it must be
    false on the diagonal. `one_more` has another negative of both ``first[i]`` and ``second[i]``.
    """

    def cross_entropy(texts: Tensor, others: Tensor, turned: bool, rows: slice) -> Tensor:
        logits = scale * texts[rows] @ others.T
        if left_out is not None:
            logits = logits.masked_fill(left_out(ALL, rows).T if turned else left_out(rows, ALL), float("-inf"))
        if one_more is not None:
            more = scale * (texts * one_more.embeddings).sum(1) + one_more.log_weights
            logits = torch.cat([logits, more[rows, None]], 1)
        return F.cross_entropy(logits, torch.arange(rows.start, rows.stop, device=logits.device), reduction="sum")

    n = len(first)
    to_second = in_blocks(partial(cross_entropy, first, second, False), n, BLOCK_ROWS)
    to_first = in_blocks(partial(cross_entropy, second, first, True), n, BLOCK_ROWS)
    return (to_second + to_first) / (2 * n)


def pairwise_sigmoid(
    first: Tensor, second: Tensor, scale: Tensor, bias: Tensor, left_out: LeftOut | None = None
) -> Tensor:
    """SigLIP's loss: each entry of the matrix is classified independently as a pair or not.

    The sum of -log sigmoid(±(scale · cosine + bias)) over the matrix, + on its diagonal, divided by n; otherwise like
    :func:`info_nce`.
    """

    def log_likelihood(rows: slice) -> Tensor:
        logits = scale * first[rows] @ second.T + bias
        if left_out is not None:
            logits = logits.masked_fill(left_out(rows, ALL), float("-inf"))
        labels = torch.full_like(logits, -1)
        labels.diagonal(rows.start).fill_(1)
        return F.logsigmoid(labels * logits).sum()

    return -in_blocks(log_likelihood, len(first), BLOCK_ROWS) / len(first)


def false_negatives(pair: Pair, keys: Mapping[str, Tensor], rows: slice = ALL, columns: slice = ALL) -> Tensor:
    """Off-diagonal entries of a pair's matrix that are not negatives, bool, for some of its rows and columns.

    Rows i and j are not negatives of each other if they share their image or one of the pair's texts, and neither are
    ``first[i]`` and ``second[j]`` if both are the same text. Equal `keys`, int64 [n] per kind, mean equal texts or
    images.
    """

    def equal(first: Tensor, second: Tensor) -> Tensor:
        return first[rows, None] == second[None, columns]

    mask = equal(keys[IMAGE], keys[IMAGE])
    for name in {pair.first, pair.second} - {IMAGE}:
        mask |= equal(keys[name], keys[name])
    if pair.first != IMAGE:
        mask |= equal(keys[pair.first], keys[pair.second])
    numbers = torch.arange(len(keys[IMAGE]), device=mask.device)
    return mask & ~equal(numbers, numbers)


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
    length 1. The larger `temperature`, a factor of the cosines, the more the first ranks count.
    """
    images = temperature * gallery.T

    def divergence(rows: slice) -> Tensor:
        targets = torch.log_softmax(teacher[rows] @ images, 1)
        logs = [torch.log_softmax(text[rows] @ images, 1) for text in texts]
        return torch.stack([F.kl_div(log, targets, reduction="sum", log_target=True) for log in logs]).sum()

    n = len(teacher)
    return in_blocks(divergence, n, max(1, RANKING_CELLS // len(gallery))) / (n * len(texts))


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
    anchor: Anchor | None = None

    def gradients(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the gradients of a batch's loss to the parameters' ``grad``.

        Returns the loss, and each unweighted term by name.
        """
        clip, anchor = self.clip, self.anchor
        scale, bias = clip.model.get_parameter("logit_scale"), getattr(clip.model, "logit_bias", None)
        # The gradients of scale and bias come from the whole batch.
        encoder = [parameter for name, parameter in trained_parameters(clip.model).items() if name not in LOGITS]
        texts = CachedTexts(clip, batch.tokens, self.precision)
        text_embeddings = texts.embed().requires_grad_()
        embeddings = batch.embeddings(text_embeddings)
        loss, terms = contrastive_loss(embeddings, scale, self.pairs, batch.key_tensors(clip.device), bias)
        if anchor is not None:
            base = anchor.embeddings(batch, lambda clip, texts: CachedTexts(clip, texts, self.precision).embed())
            for name, (weight, value) in anchor.terms(batch, embeddings, base).items():
                loss, terms = loss + weight * value, terms | {name: value.detach()}
        loss.backward()
        assert text_embeddings.grad is not None
        texts.backward(text_embeddings.grad, encoder)
        return loss.detach(), terms
