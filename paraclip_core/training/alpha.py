"""Against forgetting: interpolate the tuned text tower with the base's and choose by a stated rule.

Weight-space interpolation of a fine-tuned model with its starting point (WiSE-FT, arXiv 2109.01903), here of the text
tower alone: θ_α = (1 - α) · θ_base + α · θ_tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paraclip_core.training.validation import AO, RECALL

__all__ = ["BY_RULE", "best_so_far", "choose_alpha", "copy_weights", "interpolate", "sweep"]

BY_RULE = "by_rule"


def copy_weights(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The weights as they are now."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def interpolate(
    parameters: Mapping[str, nn.Parameter], base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float
) -> None:
    """Put (1 - α) · base + α · tuned into the parameters; at 0 and 1 these are the weights themselves, bit for bit."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            if alpha in (0.0, 1.0):
                parameter.copy_(tuned[name] if alpha else base[name])
            else:
                parameter.copy_(torch.lerp(base[name].float(), tuned[name].float(), alpha))


def sweep(
    parameters: Mapping[str, nn.Parameter],
    base: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    grid: Sequence[float],
    measure: Callable[[], Mapping[str, float]],
) -> list[dict[str, float]]:
    """Measure every α of the grid, and 0 because the rule compares with the base; in rising order."""
    points = []
    for alpha in sorted({0.0, *grid}):
        interpolate(parameters, base, tuned, alpha)
        points.append({"alpha": alpha, **measure()})
    return points


def best_so_far(
    measure: Callable[[], Mapping[str, float]], base: Mapping[str, float], max_recall_drop: float
) -> Callable[[], dict[str, float]]:
    """Measure weights while they are trained, with a figure `by_rule` that puts them in the order of α's rule.

    It is their AO@10 (their recall where there are no pairs), or, if they lose more recall against the base than α's
    rule allows, what they lose, below zero.
    """

    def measured() -> dict[str, float]:
        figures = dict(measure())
        lost = base[RECALL] - figures[RECALL]
        return figures | {BY_RULE: figures.get(AO, figures[RECALL]) if lost <= max_recall_drop + 1e-9 else -lost}

    return measured


def choose_alpha(points: Sequence[Mapping[str, float]], max_recall_drop: float) -> dict[str, Any]:
    """Choose among the points of a sweep, in percent.

    Where no pairs were measured the overlap says nothing. Then the tower that is tuned most wins, within the same
    limit: a tie at the base would undo the training because of what was not looked at.

    Returns:
        ``alpha_sweep.json``: the points, the chosen α and the rule in words.
    """
    floor = points[0][RECALL] - max_recall_drop
    # Recalls are rounded figures, so a drop of exactly the limit must not fail on its last binary digit.
    allowed = [point for point in points if point[RECALL] >= floor - 1e-9]
    within = f"{RECALL} is at most {max_recall_drop:g} points below that of α = 0 (the base)"
    if AO not in points[0]:
        rule = (
            f"highest α whose {within}; {AO} could not be looked at, because one image alone is held out for "
            "validation, or none that has a row with paraphrases (raise finetune.validation, or paraphrase.fraction if "
            "it is below 1)"
        )
        return _chosen(points, max(allowed, key=lambda point: point["alpha"]), rule)
    chosen = max(allowed, key=lambda point: (point[AO], -point["alpha"]))
    rule = f"highest {AO} on validation among the α whose {within}; the smaller α where two are equal"
    return _chosen(points, chosen, rule)


def _chosen(points: Sequence[Mapping[str, float]], chosen: Mapping[str, float], rule: str) -> dict[str, Any]:
    return {"alphas": [dict(point) for point in points], "chosen": chosen["alpha"], "rule": rule}
