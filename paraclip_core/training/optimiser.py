"""The parameters that are trained, and their AdamW."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["build_optimiser", "clamp_scale", "optimiser_tensors", "restore_optimiser", "trained_parameters"]

BETAS = (0.9, 0.98)
EPSILON = 1e-6
MAX_LOGIT_SCALE = math.log(100)
MOMENTS = ("exp_avg", "exp_avg_sq")


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that take gradients, by name: the text tower and the logit scale once the image tower is frozen."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def build_optimiser(parameters: Mapping[str, nn.Parameter], weight_decay: float) -> torch.optim.AdamW:
    """Fused AdamW with open_clip's betas; matrices decay, gains, biases and the logit scale do not."""
    groups = [
        {"params": [p for p in parameters.values() if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=EPSILON, fused=True)


def clamp_scale(logit_scale: Tensor) -> None:
    """Keep the scale of the cosines between 1 and 100, in place."""
    with torch.no_grad():
        logit_scale.clamp_(0, MAX_LOGIT_SCALE)


def optimiser_tensors(optimiser: torch.optim.AdamW, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The moments and step counts, by ``<moment>.<parameter>``; parameters that never had a gradient have none."""
    found: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for key, value in optimiser.state.get(parameter, {}).items():
            found[f"{key}.{name}"] = value
    return found


def restore_optimiser(
    optimiser: torch.optim.AdamW, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what :func:`optimiser_tensors` gave."""
    for name, parameter in parameters.items():
        if f"step.{name}" in tensors:
            state = {key: tensors[f"{key}.{name}"].to(parameter.device, copy=True) for key in MOMENTS}
            optimiser.state[parameter] = {"step": tensors[f"step.{name}"].to(parameter.device, copy=True), **state}
