"""The parameters that are trained, their AdamW and its learning rate."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from paraclip_core.errors import TrainingError

BETAS = (0.9, 0.98)
EPSILON = 1e-6
MAX_LOGIT_SCALE = math.log(100)
MOMENTS = ("exp_avg", "exp_avg_sq")
SCALE = "logit_scale"
WHOLE_TOWER = "text"


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that take gradients, by name: text tower and logit scale once the image tower is frozen."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def select_parameters(model: nn.Module, pattern: str, learn_scale: bool = True) -> None:
    """Take gradients in some of the text tower's parameters only; the image tower is frozen already.

    Args:
        model: the CLIP model.
        pattern: ``text`` for the whole tower, or names of parameters with ``*``, ``?`` and ``[…]``, separated by
            commas, for example ``transformer.resblocks.1[01].*, ln_final.*, text_projection``. A leading ``text.`` may
            be left out.
        learn_scale: whether the logit scale is trained, which the pattern says nothing of.
    """
    tower = {name: p for name, p in trained_parameters(model).items() if name not in (SCALE, "logit_bias")}
    patterns = [part.strip() for part in pattern.split(",") if part.strip()]
    if not patterns:
        raise TrainingError(
            f"finetune.train is {pattern!r} and so trains nothing; write `text` for the whole text tower, or names of "
            f"its parameters like {', '.join([n.removeprefix('text.') for n in tower][-3:])}"
        )
    if patterns != [WHOLE_TOWER]:
        short = {name: name.removeprefix("text.") for name in tower}
        for part in patterns:
            if not any(fnmatchcase(name, part) or fnmatchcase(short[name], part) for name in tower):
                near = difflib.get_close_matches(part, short.values(), 3, 0.0)
                raise TrainingError(
                    f"finetune.train: {part!r} fits no parameter of the text tower; write `text` for all of it, or "
                    f"names like {', '.join(near)}"
                )
        for name, parameter in tower.items():
            parameter.requires_grad_(any(fnmatchcase(name, p) or fnmatchcase(short[name], p) for p in patterns))
    model.get_parameter(SCALE).requires_grad_(learn_scale)


def build_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """Fused AdamW with open_clip's betas over the trained parameters; only matrices decay."""
    parameters = list(trained_parameters(model).values())
    matrices, others = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=EPSILON, fused=True)


def set_learning_rate(optimizer: torch.optim.AdamW, rate: float) -> None:
    """Give every group the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


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


def clamp_scale(logit_scale: Tensor) -> None:
    """Keep the scale of the cosines between 1 and 100, in place."""
    with torch.no_grad():
        logit_scale.clamp_(0, MAX_LOGIT_SCALE)


def optimizer_tensors(optimizer: torch.optim.AdamW, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The moments and step counts, by ``<moment>.<parameter>``; parameters that never had a gradient have none."""
    return {
        f"{key}.{name}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.AdamW, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Restore what :func:`optimizer_tensors` gave."""
    for name, parameter in parameters.items():
        if f"step.{name}" in tensors:
            state = {key: tensors[f"{key}.{name}"].to(parameter.device, copy=True) for key in MOMENTS}
            optimizer.state[parameter] = {"step": tensors[f"step.{name}"].to(parameter.device, copy=True), **state}
