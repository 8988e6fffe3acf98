"""Relevance feedback: a query vector that learns from marked images and ranks the whole index anew.

Logistic regression over image features with a prior at the query: the weights start at the text's embedding and are
drawn back to it (a Gaussian prior, as in MAP estimation), so that two marks turn the query and twenty replace it. A
sample of unmarked images counts as negatives, as nearly all of an index is irrelevant to a query.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["refine"]

SHARPNESS = 20.0
"""Scale from cosines to logits; CLIP's own is up to 100."""
PULL = 0.5
"""Weight of the pull towards the query, for each unit of squared distance: with a tenth of it, three marks right and
three wrong gave worse rankings than Rocchio's formula (benchmarks/bench_feedback.py)."""
UNMARKED_WEIGHT = 1.0
"""Weight of all unmarked images together, as all marked ones of a kind have 1."""
STEPS = 15


def refine(
    query: NDArray[np.floating],
    positive: NDArray[np.floating],
    negative: NDArray[np.floating],
    unmarked: NDArray[np.floating],
) -> NDArray[np.float32]:
    """The direction that separates marked images, near the query.

    Args:
        query: unit vector of the text or image that was searched for, [d].
        positive: unit features of the images marked as right, [p, d].
        negative: those of the images marked as wrong, [n, d].
        unmarked: those of a sample of the index, [u, d].

    Returns:
        Unit vector, float32 [d]; the query itself where nothing is marked.
    """
    prior = torch.from_numpy(np.asarray(query, np.float32))
    if not len(positive) and not len(negative):
        return prior.numpy()
    groups = [(positive, 1.0, 1.0), (negative, 0.0, 1.0), (unmarked, 0.0, UNMARKED_WEIGHT)]
    groups = [group for group in groups if len(group[0])]
    features = torch.from_numpy(np.concatenate([np.asarray(rows, np.float32) for rows, _, _ in groups]))
    targets = torch.cat([torch.full((len(rows),), target) for rows, target, _ in groups])
    weights = torch.cat([torch.full((len(rows),), weight / len(rows)) for rows, _, weight in groups])
    direction = prior.clone().requires_grad_()
    # The bias is where the query itself separates: it is learned, too, without a pull.
    bias = (-SHARPNESS * (features @ prior).median()).clone().requires_grad_()
    solver = torch.optim.LBFGS([direction, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        logits = SHARPNESS * features @ direction + bias
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, weights, reduction="sum")
        value = losses + PULL * (direction - prior).square().sum() * SHARPNESS
        value.backward()
        return value

    solver.step(loss)
    return torch.nn.functional.normalize(direction.detach(), dim=0).numpy()
