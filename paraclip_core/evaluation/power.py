"""How small a gain so many images can tell, and how many images a gain of two points needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from paraclip_core.evaluation.intervals import CONFIDENCE

GAIN = 2.0
"""Points that an evaluation should be able to tell."""
POWER = 0.8
"""How often it should tell them."""
SPREAD = 7.0, 13.0
"""Standard deviations of AO@10's difference, in points: between images, and between the pairs of one. They give the
intervals that the demo and Flickr8k have, see docs/benchmarks.md."""


def images_needed(images: int, half: float) -> int:
    """On how many images the interval of a true gain of two points lies above zero, four times in five.

    The sample size of a paired comparison (Chow, Shao & Wang, Sample Size Calculations in Clinical Research, 2008, ch.
    3.1): n = ((z_(1-α/2) + z_0.8) · σ / gain)², with the σ of an image's difference that an interval of ± `half` points
    over `images` has, z_(1-α/2) · σ / √images = half.
    """
    z, power = (NormalDist().inv_cdf(share) for share in ((1 + CONFIDENCE) / 2, POWER))
    return math.ceil(images * ((1 + power / z) * half / GAIN) ** 2)


def expected_half(images: int, pairs: int) -> float:
    """Half the interval to expect of AO@10's difference, in points, before anything is measured."""
    between, within = SPREAD
    return NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt((between**2 + within**2 * images / pairs) / images)


def few_for_alpha(pairs: int, images: int, grid: Sequence[float]) -> str | None:
    """What to know and do if so many pairs of so many held-out images say little of which α of the grid is best.

    None if they say enough, and if the grid has one α. Without pairs the rule in ``alpha_sweep.json`` says that there
    were none.
    """
    if not pairs or len(set(grid)) <= 1 or (half := expected_half(min(images, pairs), pairs)) <= GAIN:
        return None
    return (
        f"α is chosen on {pairs:,} pairs of held-out training images, which tell AO@10 to ±{half:.1f} points, so its "
        "choice is mostly chance; raise finetune.validation, or add captions"
    )
