"""The parameters that are trained, their AdamW, its learning rate, and their moving average."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from paraclip_core.clip.model import UNSEEN
from paraclip_core.errors import TrainingError

__all__ = [
    "WeightAverage",
    "build_optimizer",
    "clamp_scale",
    "learning_rate",
    "optimizer_tensors",
    "restore_optimizer",
    "select_parameters",
    "set_learning_rate",
    "trained_parameters",
]

BETAS = (0.9, 0.98)
EPSILON = 1e-6
MAX_LOGIT_SCALE = math.log(100)
MOMENTS = ("exp_avg", "exp_avg_sq")
SCALE = "logit_scale"
WHOLE_TOWER = "text"
LAYER = re.compile(r"(?:^|\.)(?:resblocks|layers?|blocks?|h)\.(\d+)\.")


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

    Raises:
        TrainingError: there is no pattern, or a part of it fits no parameter; the message names those that come near.
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


def build_optimizer(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> torch.optim.AdamW:
    """Fused AdamW with open_clip's betas over the trained parameters; only matrices decay.

    With a `layer_decay` below 1 a parameter d layers below the top has layer_decay^d times the rate. What follows the
    last layer is the top, embeddings are one below the first layer.
    """
    parameters = trained_parameters(model)
    depths = _depths(model, parameters)
    groups: dict[tuple[bool, int], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        depth = 0 if layer_decay == 1.0 else depths[name]
        groups.setdefault((parameter.ndim < 2, depth), []).append(parameter)
    options = [
        {"params": groups[key], "weight_decay": 0.0 if key[0] else weight_decay, "rate": layer_decay ** key[1]}
        for key in sorted(groups)
    ]
    return torch.optim.AdamW(options, lr=0.0, betas=BETAS, eps=EPSILON, fused=True)


def _depths(model: nn.Module, parameters: Iterable[str]) -> dict[str, int]:
    """How many layers below the top each parameter is; layers that are not trained count."""
    tower = [name for name, _ in model.named_parameters() if not name.startswith(("visual.", *UNSEEN))]
    top = max(map(_layer, tower), default=0) + 1
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    lowest = {name for name in parameters if name in tables or "embedding" in name or "cls_emb" in name}
    return {name: top - (_layer(name) or (0 if name in lowest else top)) for name in parameters}


def _layer(name: str) -> int:
    """The layer of a parameter, from 1; 0 outside of layers."""
    match = LAYER.search(name)
    return 0 if match is None else int(match[1]) + 1


def set_learning_rate(optimizer: torch.optim.AdamW, rate: float) -> None:
    """Give every group its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]


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


class WeightAverage:
    """avg ← d · avg + (1 - d) · weights after every step, with d = min(decay, (1 + step) / (10 + step)).

    The second term lets short runs forget their starting point, as in TensorFlow's ``ExponentialMovingAverage``. With
    a decay of 0 there is no average, and all methods leave the weights as they are.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        """Start from the weights as they are."""
        self._parameters, self._decay = parameters, decay
        self.tensors: dict[str, Tensor] = {}
        """Averages by parameter name; a checkpoint holds them."""
        if decay:
            self.tensors = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after `step` steps, from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, average in self.tensors.items():
            average.lerp_(self._parameters[name], 1 - decay)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint's averages."""
        for name, average in self.tensors.items():
            average.copy_(tensors[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averages in place of the weights, for as long as the block lasts."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def apply(self) -> None:
        """Replace the weights by the averages."""
        for name, average in self.tensors.items():
            self._parameters[name].copy_(average)

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, average in self.tensors.items():
            weights = self._parameters[name].detach().clone()
            self._parameters[name].copy_(average)
            average.copy_(weights)
