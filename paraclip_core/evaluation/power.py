"""How many images tell a gain: before an evaluation, from what is known of others, and after it, from its interval."""

from __future__ import annotations

import math
from statistics import NormalDist

GAIN = 2.0
"""Points that an evaluation should be able to tell."""
POWER = 0.8
"""How often it should tell them."""
SPREAD = 7.0, 13.0
"""Standard deviations of AO@10's difference, in points: between images, and between the pairs of one. They give the
intervals that the demo and Flickr8k have, see docs/benchmarks.md."""


def images_needed(images: int, half: float, confidence: float) -> int:
    """On how many images the interval of a true gain of two points lies above zero, four times in five.

    The sample size of a paired comparison (Chow, Shao & Wang, Sample Size Calculations in Clinical Research, 2008, ch.
    3.1): n = ((z_(1-α/2) + z_0.8) · σ / gain)², with the σ of an image's difference that an interval of ± `half` points
    over `images` has, z_(1-α/2) · σ / √images = half.
    """
    z, power = (NormalDist().inv_cdf(share) for share in ((1 + confidence) / 2, POWER))
    return math.ceil(images * ((1 + power / z) * half / GAIN) ** 2)


def expected_half(images: int, pairs: int, confidence: float) -> float:
    """Half the interval to expect of AO@10's difference, in points, before anything is measured."""
    between, within = SPREAD
    return NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt((between**2 + within**2 * images / pairs) / images)
