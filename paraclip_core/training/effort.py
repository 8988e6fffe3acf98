"""How much arithmetic a step is, and how much the machine could do."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.nn import functional

from paraclip_core.clip.encode import Precision
from paraclip_core.clip.models import ClipModel
from paraclip_core.clip.packed import weight_gradient
from paraclip_core.clip.prefixes import alphabetical, count_nodes
from paraclip_core.clip.ragged import Ragged
from paraclip_core.clip.towers import text_tower

__all__ = ["matmul_rate", "step_flops"]

ROWS = 2048


def step_flops(clip: ClipModel, tokens: Ragged) -> float:
    """Floating-point operations of the text tower's linear layers for texts that are embedded and trained on once.

    A product of an n by k and a k by m matrix counts 2nkm; backward is two products for each of forward. It is 0 for
    towers that do not compute shared beginnings once (:mod:`paraclip_core.clip.packed`), whose work nobody counts.
    """
    packed = text_tower(clip).packed
    if packed is None or not len(tokens):
        return 0.0
    nodes = count_nodes(tokens.take(alphabetical(tokens)))
    layers: Any = packed.tower.transformer.resblocks
    width = layers[0].mlp.c_fc.weight
    into, block = layers[0].attn.in_proj_weight.numel(), width.shape[1] ** 2 + 2 * width.numel()
    # Of the last layer only the queries, keys and values are computed for all tokens.
    return 6.0 * (nodes * (into * len(layers) + block * (len(layers) - 1)) + len(tokens) * block)


def matmul_rate(clip: ClipModel, precision: Precision) -> float:
    """Measured floating-point operations a second of the tower's widest layer, forward and backward; 0 as above."""
    packed = text_tower(clip).packed
    if packed is None:
        return 0.0
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    weight = packed.tower.transformer.resblocks[0].mlp.c_fc.weight.detach().to(dtype)
    x = torch.zeros(ROWS, weight.shape[1], dtype=dtype, device=clip.device)
    best = 0.0
    for _ in range(3):
        _wait(clip.device)
        began = time.perf_counter()
        gradient = functional.linear(x, weight)
        torch.mm(gradient, weight)
        weight_gradient(x, gradient)
        _wait(clip.device)
        best = max(best, 6 * x.numel() * len(weight) / max(time.perf_counter() - began, 1e-9))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
