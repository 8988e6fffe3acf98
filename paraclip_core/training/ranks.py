"""Rank consistency: every wording of a caption ranks images as the base does.

Over the images of the batch and a bank of others, with p = softmax(T · teacher · images) and
q = softmax(T · wording · images), the loss is the mean of KL(p ‖ q) over rows and wordings: ListNet's top-one
probabilities (Cao et al., ICML 2007). The teacher is the base's embedding of the caption, or the mean of its embeddings
of all wordings. The contrastive losses draw single pairs together and leave rankings to follow; this one trains what
AO@k and recall@k look at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

CELLS = 1 << 22
"""Similarities of one wording that are in memory at a time."""
DRAWS = 2**129
"""Where Philox's numbers for the bank begin, behind those for order and rewrites."""

Gallery = Callable[[int, NDArray[np.int64]], NDArray[np.int64]]
"""Feature rows of the images that a step ranks, from its number and the feature rows of its batch."""


def gallery_of(image_rows: NDArray[np.int64], bank: int, seed: int) -> Gallery:
    """The batch's images and a bank of training images, each once and in the order of the features.

    A bank is a function of (seed, step). An image is drawn as often as it has training rows.

    Args:
        image_rows: feature row of each training row's image; only those drawn are read.
        bank: draws for each step.
        seed: seed of the run.
    """

    def gallery(step: int, batch: NDArray[np.int64]) -> NDArray[np.int64]:
        key = np.array([seed % 2**64, step], np.uint64)
        drawn = np.random.Philox(counter=DRAWS, key=key).random_raw(bank) % np.uint64(len(image_rows))
        return np.unique(np.concatenate([batch, image_rows[drawn.astype(np.int64)]]))

    return gallery


def rank_divergence(wordings: Sequence[Tensor], teacher: Tensor, gallery: Tensor, temperature: float) -> Tensor:
    """Mean of KL(the teacher's ranking ‖ that of a wording) over rows and wordings.

    Similarities are computed some rows at a time, and gradients along with the value, so that memory does not grow with
    rows · images. Gradients reach the wordings alone.

    Args:
        wordings: embeddings of each wording of the n captions, L2-normalized, float32 [n, d] each.
        teacher: embeddings that rank as all wordings should, L2-normalized, float32 [n, d].
        gallery: image features, L2-normalized, float32 [m, d].
        temperature: factor of the cosines; the larger, the more the first ranks count.

    Returns:
        A scalar, in nats.
    """
    divergence = _RankDivergence.apply(teacher, gallery, temperature, *wordings)
    assert isinstance(divergence, Tensor)
    return divergence


class _RankDivergence(torch.autograd.Function):
    """The gradient by a wording's similarities T · wording · images is (q - p) / (rows · wordings)."""

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, gallery: Tensor, temperature: float, *wordings: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, count = max(1, CELLS // len(gallery)), len(teacher) * len(wordings)
        total = teacher.new_zeros(())
        gradients = [torch.empty_like(wording) for wording in wordings] if any(ctx.needs_input_grad) else []
        scaled = temperature * gallery
        for start in range(0, len(teacher), rows):
            part = slice(start, start + rows)
            targets = torch.log_softmax(teacher[part] @ scaled.T, 1)
            shares = targets.exp()
            for number, wording in enumerate(wordings):
                logs = torch.log_softmax(wording[part] @ scaled.T, 1)
                total += (shares * (targets - logs)).sum()
                if gradients:
                    gradients[number][part] = logs.exp_().sub_(shares) @ scaled
        ctx.save_for_backward(*(gradient.div_(count) for gradient in gradients))
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        return None, None, None, *(gradient * saved for saved in ctx.saved_tensors)
