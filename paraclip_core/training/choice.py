"""The choice among recipes, learning rates and interpolations with the base, on held-out images.

Against forgetting, the tuned text encoder is interpolated with the base's (WiSE-FT, arXiv 2109.01903):
θ_α = (1 - α) · θ_base + α · θ_tuned. The choice is by what users feel: recall of plain and of paraphrased queries, and
their agreement; queries of a log have the last alone. Differences that held-out images cannot tell from chance decide
nothing; among such equals the one that changes the fewest results wins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paraclip_core.training.options import Candidate
from paraclip_core.training.validation import AO, OVERLAP, PARAPHRASE_RECALL, RECALL, Parts, Validation, interval

FELT = (RECALL, PARAPHRASE_RECALL, AO)
"""What users feel; the criterion is the mean of those that were measured."""


@dataclass(frozen=True)
class Point:
    """A candidate at one α, and what it finds."""

    candidate: Candidate
    alpha: float
    validation: Validation
    """With the overlap with the base's results."""

    @property
    def felt(self) -> Parts:
        """The criterion, by image; a single 0 if nothing was measured."""
        parts = [self.validation.parts[name] for name in FELT if name in self.validation.parts]
        return sum(parts[1:], parts[0]) / len(parts) if parts else np.zeros(1)


@dataclass(frozen=True)
class Choice:
    """The chosen point, and why."""

    chosen: Point
    rule: str
    stopped: Mapping[str, str]
    """Why each candidate that was not chosen was not, by its name."""
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


def choose(points: Sequence[Point], grid: Sequence[float], retention: float | None = None) -> Choice:
    """Choose among points, those of each candidate side by side; its first one is the base, α = 0.

    A point is allowed unless its recall of plain captions is below the base's by more than chance (95 % interval of the
    paired difference). Queries of a log have no recall: with `retention` a point is allowed if its first images keep so
    many percent of the base's, for the query as it was typed (decision 27).

    The best of the allowed ones by the criterion, and all that are within one standard error of it, count as equal (the
    one-standard-error rule; Breiman et al., Classification and Regression Trees, 1984, sec. 3.4.3); of these the one
    wins that changes the fewest results. Without paraphrases to search with, the largest allowed α of the first
    candidate wins: falling back to the base would undo the training because of an unmeasured figure. If the grid has a
    single α, the best candidate at that α wins, whatever it costs.
    """
    base = points[0].validation
    if len(set(grid)) == 1:
        chosen = max((point for point in points if point.alpha in grid), key=_score)
        return _choice(points, chosen, chosen, "the only α of finetune.alpha.grid", {})
    worse = {id(point): loss for point in points if (loss := lost_recall(point, base) or _changed(point, retention))}
    allowed = [point for point in points if id(point) not in worse]
    within = "recall@10 of plain captions is not significantly below the base's"
    if retention is not None:
        within = f"first ten images keep {retention:g} % of the base's"
    if AO not in base.figures:
        largest = max((one for one in allowed if one.candidate is points[0].candidate), key=lambda one: one.alpha)
        alone = "one image alone is held out for validation, or none that has a row with paraphrases"
        if retention is not None:
            alone = "no query that has paraphrases is held out for validation"
        words = (
            f"highest α whose {within}; agreement could not be looked at, because {alone} (raise finetune.validation, "
            "or paraphrase.fraction if it is below 1)"
        )
        return _choice(points, largest, points[0], words, worse)
    best = max(allowed, key=lambda point: (_score(point), -point.alpha))
    equal = [point for point in allowed if _score(best) - _score(point) <= interval(best.felt - point.felt)[1]]
    chosen = max(equal, key=lambda point: (point.validation.figures[OVERLAP], -point.alpha))
    criterion = "mean of recall@10 of plain and of paraphrased queries and their AO@10 on held-out images"
    words = (
        f"highest {criterion if retention is None else 'AO@10 of held-out queries and their paraphrases'}, among all "
        f"whose {within}; of those within a standard error of the best, the one that changes the fewest results"
    )
    return _choice(points, chosen, best, words, worse)


def _choice(points: Sequence[Point], chosen: Point, best: Point, words: str, worse: Mapping[int, str]) -> Choice:
    rates, stopped = sorted({point.candidate.options.learning_rate for point in points}), {}
    for name, group in _by_candidate(points):
        base, *tuned = group
        if not tuned or (chosen.alpha and name == chosen.candidate.name):
            continue
        allowed = [point for point in tuned if id(point) not in worse]
        higher = [f"at α = {point.alpha:g}, {worse[id(point)]}" for point in tuned if id(point) in worse][:1]
        if allowed:
            most = max(allowed, key=_score)
            gain, error = _score(most) - _score(base), interval(most.felt - base.felt)[1]
            higher.insert(0, f"at α = {most.alpha:g} the criterion changes by {gain:+.1f} ± {error:.1f}")
        stopped[name] = "; ".join(higher)
    notes, rate = [], best.candidate.options.learning_rate
    if best.alpha and len(rates) > 1 and rate in (rates[0], rates[-1]):
        low = rate == rates[0]
        following = rates[0] ** 2 / rates[1] if low else rates[-1] ** 2 / rates[-2]
        notes.append(
            f"the best learning rate on held-out images, {rate:g}, is the {'lowest' if low else 'highest'} that was "
            f"tried; {following:.1g} may be better (finetune.learning_rate)"
        )
    return Choice(chosen, words, stopped, tuple(notes))


def _by_candidate(points: Sequence[Point]) -> Iterator[tuple[str, list[Point]]]:
    for name, group in groupby(points, key=lambda point: point.candidate.name):
        yield name, list(group)


def _score(point: Point) -> float:
    return float(point.felt.sum())


def _changed(point: Point, retention: float | None) -> str:
    """How little of the base's first images a point keeps; or empty."""
    overlap = point.validation.figures[OVERLAP]
    if retention is None or not point.alpha or overlap >= retention or AO not in point.validation.figures:
        return ""
    return f"{overlap:.0f} % of the base's first images stay"


def lost_recall(point: Point, base: Validation) -> str:
    """By how much recall of plain captions is significantly below the base's; or empty."""
    if RECALL not in base.parts:
        return ""
    difference = point.validation.parts[RECALL] - base.parts[RECALL]
    half, _ = interval(difference)
    change = float(difference.sum())
    # A difference without any variance, such as none at all, is no loss below rounding.
    return f"recall@10 of plain captions falls by {-change:.1f} ± {half:.1f}" if change + half < -1e-9 else ""


def as_json(points: Sequence[Point], choice: Choice) -> dict[str, Any]:
    """``candidates.json``: what each candidate finds at each α, and the choice."""
    return {
        "candidates": [
            {
                **_named(group[0].candidate),
                "alphas": [{"alpha": point.alpha, **point.validation.figures} for point in group],
                "stopped": choice.stopped.get(name),
            }
            for name, group in _by_candidate(points)
        ],
        "chosen": {**_named(choice.chosen.candidate), "alpha": choice.chosen.alpha},
        "rule": choice.rule,
        "notes": list(choice.notes),
    }


def _named(candidate: Candidate) -> dict[str, Any]:
    return {"recipe": candidate.recipe, "learning_rate": candidate.options.learning_rate}
