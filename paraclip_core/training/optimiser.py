"""The parameters that are trained, and their AdamW."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from paraclip_core.clip.base import UNSEEN
from paraclip_core.errors import TrainingError

__all__ = [
    "build_optimiser",
    "clamp_scale",
    "embedding_tables",
    "optimiser_tensors",
    "restore_optimiser",
    "select_parameters",
    "set_learning_rate",
    "tower_layers",
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
    """Parameters that take gradients, by name: the text tower and the logit scale once the image tower is frozen."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def select_parameters(model: nn.Module, pattern: str, learn_scale: bool = True) -> None:
    """Take gradients in some of the text tower's parameters only; the image tower must be frozen already.

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


def build_optimiser(
    parameters: Mapping[str, nn.Parameter],
    weight_decay: float,
    layer_decay: float = 1.0,
    tables: Collection[str] = (),
    layers: int = 0,
) -> torch.optim.AdamW:
    """Fused AdamW with open_clip's betas; matrices decay, gains, biases and the logit scale do not.

    A `layer_decay` below 1 makes lower layers learn more slowly: a parameter d layers below the top has
    layer_decay^d times the rate. What follows the last layer is the top, the embeddings are one below the first layer:
    parameters that are called embeddings, and `tables` (see :func:`embedding_tables`). The tower has `layers` (see
    :func:`tower_layers`), or as many as the parameters tell of.
    """
    depths = _depths(parameters, tables, layers)
    groups: dict[tuple[bool, int], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        depth = 0 if layer_decay == 1.0 else depths[name]
        groups.setdefault((parameter.ndim < 2, depth), []).append(parameter)
    listed = [
        {"params": groups[key], "weight_decay": 0.0 if key[0] else weight_decay, "rate": layer_decay ** key[1]}
        for key in sorted(groups)
    ]
    return torch.optim.AdamW(listed, lr=0.0, betas=BETAS, eps=EPSILON, fused=True)


def embedding_tables(model: nn.Module) -> set[str]:
    """Names of the tables of a model's embedding modules, whatever the modules are called."""
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}


def tower_layers(model: nn.Module) -> int:
    """How many layers a model's text tower has, trained or not."""
    return _layers(name for name, _ in model.named_parameters() if not name.startswith(("visual.", *UNSEEN)))


def set_learning_rate(optimiser: torch.optim.AdamW, rate: float) -> None:
    """Give every group its share of the rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["rate"]


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


def _depths(parameters: Mapping[str, nn.Parameter], tables: Collection[str], layers: int) -> dict[str, int]:
    """How many layers below the top each parameter is."""
    top = max(layers, _layers(parameters)) + 1
    lowest = {name for name in parameters if name in tables or "embedding" in name or "cls_emb" in name}
    return {name: top - (_layer(name) or (0 if name in lowest else top)) for name in parameters}


def _layers(names: Iterable[str]) -> int:
    return max(map(_layer, names), default=0)


def _layer(name: str) -> int:
    """The layer that a parameter belongs to, from 1 on; 0 where it is outside of them."""
    found = LAYER.search(name)
    return 0 if found is None else int(found[1]) + 1
