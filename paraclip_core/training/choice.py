"""The choice among recipes, learning rates and interpolations with the base, on held-out images.

Against forgetting, the tuned text encoder is interpolated with the base's (WiSE-FT, arXiv 2109.01903):
θ_α = (1 - α) · θ_base + α · θ_tuned. The choice is by what users feel: recall of plain and of paraphrased queries, and
their agreement. Differences that held-out images cannot tell from chance decide nothing; among such equals the one that
changes the fewest results wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from paraclip_core.training.options import RecipeName
from paraclip_core.training.validation import AO, OVERLAP, PARAPHRASE_RECALL, RECALL, Parts, Validation, interval

FELT = (RECALL, PARAPHRASE_RECALL, AO)
"""What users feel; the criterion is the mean of those that were measured."""


@dataclass(frozen=True)
class Point:
    """A candidate at one α, and what it finds."""

    recipe: RecipeName
    learning_rate: float
    alpha: float
    validation: Validation

    @property
    def name(self) -> str:
        """For example ``ranking at 0.001, α = 0.5``."""
        return f"{self.recipe} at {self.learning_rate:g}, α = {self.alpha:g}"

    @property
    def felt(self) -> Parts:
        """The criterion, by image."""
        parts = [self.validation.parts[name] for name in FELT if name in self.validation.parts]
        return sum(parts[1:], parts[0]) / len(parts)


@dataclass(frozen=True)
class Choice:
    """The chosen point, and why."""

    chosen: Point
    rule: str
    stopped: Mapping[tuple[RecipeName, float], str]
    """Why each candidate that was not chosen was not, by recipe and learning rate."""
    notes: tuple[str, ...] = ()
    """An optimum at the edge of the learning rates."""


def copy_weights(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """A copy of the current weights."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def interpolate(
    parameters: Mapping[str, nn.Parameter], base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float
) -> None:
    """Set the parameters to (1 - α) · base + α · tuned; at 0 and 1 bit-identical to the base's or the tuned ones."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            if alpha in (0.0, 1.0):
                parameter.copy_(tuned[name] if alpha else base[name])
            else:
                parameter.copy_(torch.lerp(base[name].float(), tuned[name].float(), alpha))


def choose(points: Sequence[Point], base: Validation, grid: Sequence[float]) -> Choice:
    """Choose among all points above α = 0, and the base.

    A point is allowed unless its recall of plain captions is below the base's by more than chance (95 % interval of the
    paired difference). Of the allowed ones and the base the criterion's best, and all that are within one standard
    error of it, count as equal (the one-standard-error rule; Breiman et al., Classification and Regression Trees, 1984,
    sec. 3.4.3); of these the one wins that changes the fewest results. Without paraphrases to search with, the largest
    allowed α of the first candidate wins: falling back to the base would undo the training because of an unmeasured
    figure. If the grid has a single α, the best candidate at that α wins, whatever it costs.
    """
    zero = Point(points[0].recipe, points[0].learning_rate, 0.0, base)
    if len(set(grid)) == 1:
        chosen = max(points, key=_score) if points else zero
        return _choice(points, zero, chosen, chosen, "the only α of finetune.alpha.grid", {})
    worse = {id(point): loss for point in points if (loss := lost_recall(point, base))}
    allowed = [zero, *(point for point in points if id(point) not in worse)]
    within = "recall@10 of plain captions is not significantly below the base's"
    if AO not in base.figures:
        first = [point for point in allowed if (point.recipe, point.learning_rate) == (zero.recipe, zero.learning_rate)]
        words = (
            f"highest α whose {within}; agreement could not be looked at, because one image alone is held out for "
            "validation, or none that has a row with paraphrases (raise finetune.validation, or paraphrase.fraction if "
            "it is below 1)"
        )
        largest = max(first, key=lambda point: point.alpha)
        return _choice(points, zero, largest, zero, words, worse)
    best = max(allowed, key=lambda point: (_score(point), -point.alpha))
    equal = [point for point in allowed if _score(best) - _score(point) <= interval(best.felt - point.felt)[1]]
    chosen = max(equal, key=lambda point: (point.validation.figures.get(OVERLAP, 100.0), -point.alpha))
    words = (
        "highest mean of recall@10 of plain and of paraphrased queries and their AO@10 on held-out images, among all "
        f"whose {within}; of those within a standard error of the best, the one that changes the fewest results"
    )
    return _choice(points, zero, chosen, best, words, worse)


def _choice(
    points: Sequence[Point], zero: Point, chosen: Point, best: Point, words: str, worse: Mapping[int, str]
) -> Choice:
    rates, stopped = sorted({point.learning_rate for point in points}), {}
    for key, group in groupby(points, key=lambda point: (point.recipe, point.learning_rate)):
        if key == (chosen.recipe, chosen.learning_rate) and chosen.alpha:
            continue
        several = list(group)
        allowed = [point for point in several if id(point) not in worse]
        if not allowed:
            stopped[key] = f"at α = {several[0].alpha:g}, {worse[id(several[0])]}"
            continue
        most = max(allowed, key=_score)
        gain, error = _score(most) - _score(zero), interval(most.felt - zero.felt)[1]
        stopped[key] = f"at α = {most.alpha:g} the criterion changes by {gain:+.1f} ± {error:.1f}"
        if higher := [point for point in several if id(point) in worse]:
            stopped[key] += f"; at α = {higher[0].alpha:g}, {worse[id(higher[0])]}"
    notes = []
    if best.alpha and len(rates) > 1 and best.learning_rate in (rates[0], rates[-1]):
        low = best.learning_rate == rates[0]
        following = rates[0] ** 2 / rates[1] if low else rates[-1] ** 2 / rates[-2]
        notes.append(
            f"the best learning rate on held-out images, {best.learning_rate:g}, is the "
            f"{'lowest' if low else 'highest'} that was tried; {following:.1g} may be better (finetune.learning_rate)"
        )
    return Choice(chosen, words, stopped, tuple(notes))


def _score(point: Point) -> float:
    return float(point.felt.sum())


def lost_recall(point: Point, base: Validation) -> str:
    """By how much recall of plain captions is significantly below the base's; or empty."""
    difference = point.validation.parts[RECALL] - base.parts[RECALL]
    half, _ = interval(difference)
    change = float(difference.sum())
    # A difference without any variance, such as none at all, is no loss below rounding.
    return f"recall@10 of plain captions falls by {-change:.1f} ± {half:.1f}" if change + half < -1e-9 else ""


def as_json(points: Sequence[Point], base: Validation, choice: Choice) -> dict[str, Any]:
    """``candidates.json``: what each candidate finds at each α, and the choice."""
    chosen = choice.chosen
    return {
        "candidates": [
            {
                "recipe": recipe,
                "learning_rate": rate,
                "alphas": [{"alpha": 0.0, **base.figures}]
                + [{"alpha": point.alpha, **point.validation.figures} for point in group],
                "stopped": choice.stopped.get((recipe, rate)),
            }
            for (recipe, rate), group in groupby(points, key=lambda point: (point.recipe, point.learning_rate))
        ],
        "chosen": {"recipe": chosen.recipe, "learning_rate": chosen.learning_rate, "alpha": chosen.alpha},
        "rule": choice.rule,
        "notes": list(choice.notes),
    }
