"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

__all__ = ["learning_rate"]


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear rise over the first `warmup` share of the steps, then half a cosine down to 0 (as open_clip's).

    Args:
        step: the step to be taken, from 0.
        steps: number of steps of the whole run.
        peak: highest rate.
        warmup: share of the steps, in [0, 1).
    """
    rising = int(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))
