"""What growing numbers of captions gained where it was measured: a plan quotes the nearest before anything is paid for.

Photographs' captions, paraphrased by a 1.5 B model, and a small base. The table is that of docs/results.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class MeasuredGain(NamedTuple):
    """The mean over seeds, in points of AO@10 on SICK's paraphrased queries."""

    captions: int
    """Captions to train on, those included that choose recipe, learning rate and α."""
    gain: float
    """Over the base."""
    over_control: float
    promoted: int
    """Runs whose verdict is *promote*."""
    runs: int
    recipe: str = "that the run chose"


MEASURED = (
    MeasuredGain(300, 0.55, 0.55, 0, 3),
    MeasuredGain(1000, 1.85, 1.54, 3, 3),
    MeasuredGain(2300, 2.69, 1.66, 1, 1),
    MeasuredGain(5856, 6.16, 5.56, 3, 3, "that the run chose, two paraphrases each"),
)


def what_others_saw(captions: int) -> str:
    """A sentence about the measurement whose number of captions is nearest, by its ratio to `captions`."""
    nearest = min(MEASURED, key=lambda row: abs(math.log(row.captions / max(captions, 1))))
    return (
        f"what others saw: {nearest.captions:,} captions of photographs gained {nearest.gain:+.1f} points of AO@10 on "
        f"a small base, {nearest.over_control:+.1f} over the control, by the recipe {nearest.recipe}; "
        f"{nearest.promoted} of {nearest.runs} runs promoted (docs/results.md)"
    )
