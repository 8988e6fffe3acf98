"""Statistical power: the gain that a number of images can show, and the images that a gain of two points needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from paraclip_core.evaluation.intervals import CONFIDENCE, Z

GAIN = 2.0
"""Gain in points that an evaluation should be able to detect."""
POWER = 0.8
"""Probability with which it should detect it."""
SPREAD = 7.0, 13.0
"""Standard deviations of AO@10's difference, in points: between images, and between the pairs of one image. They
reproduce the intervals of the demo and Flickr8k; see docs/benchmarks.md."""
RECALL_SPREAD = 35.0
"""Standard deviation of recall@10's difference between images, in points: one query in eight enters or leaves."""
RECALLS = 6
"""Recalls that are guarded where a benchmark of paraphrased retrieval is measured."""


def images_needed(images: int, half: float) -> int:
    """Number of images for which the interval of a true gain of two points is above zero four times out of five.

    The sample size of a paired comparison (Chow, Shao & Wang, Sample Size Calculations in Clinical Research, 2008, ch.
    3.1): n = ((z_(1-α/2) + z_0.8) · σ / gain)², where σ, of an image's difference, follows from an interval of ± `half`
    points over `images`: z_(1-α/2) · σ / √images = half.
    """
    return math.ceil(images * ((1 + NormalDist().inv_cdf(POWER) / Z) * half / GAIN) ** 2)


def expected_half(images: int, pairs: int) -> float:
    """Expected half-width of the interval of AO@10's difference, in points, before anything is measured."""
    between, within = SPREAD
    return Z * math.sqrt((between**2 + within**2 * images / pairs) / images)


def loss_z(figures: int) -> float:
    """Standard errors below zero from which one of so many guarded figures counts as lost (Bonferroni): of a model that
    loses nothing, all of them pass 39 times out of 40 or more often."""
    return NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / max(1, figures))


def shown_loss(error: float, figures: int) -> float:
    """The loss in points that is shown four times out of five, by one of so many figures with this standard error."""
    return (loss_z(figures) + NormalDist().inv_cdf(POWER)) * error


def few_for_alpha(
    pairs: int, images: int, grid: Sequence[float], held_out: str = "images", more: str = "captions"
) -> str | None:
    """A notice if the pairs and images (or what else is `held_out`) are too few to choose the best α of the grid.

    None if they are enough, or if the grid has a single α. Without pairs the rule in ``candidates.json`` says so.
    """
    if not pairs or len(set(grid)) <= 1 or (half := expected_half(min(images, pairs), pairs)) <= GAIN:
        return None
    return (
        f"recipe, learning rate and α are chosen on {pairs:,} pairs of held-out training {held_out}, which tell AO@10 "
        f"to ±{half:.1f} points, so the choice is mostly chance; raise finetune.validation, or add {more}"
    )
