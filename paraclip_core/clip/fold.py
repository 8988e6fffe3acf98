"""Batch norms folded into the convolutions before them, for encoding many images."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["folded"]

log = logging.getLogger(__name__)

TOLERANCE = 1e-4


def folded(visual: nn.Module, image_size: tuple[int, int]) -> nn.Module:
    """A copy of an image tower in eval mode that computes the same with fewer passes over memory.

    Each batch norm whose predecessor among its parent's children is a convolution is folded into it. Whether the
    tower really runs them one after the other is tried on a random image: a tower that answers otherwise, or has no
    batch norm, is returned as it is. For EfficientNet-Lite0 on a CPU this saves about a third of the time; rounding
    differs by about 1e-6.
    """
    candidate = copy.deepcopy(visual).eval()
    count = sum(_fold_children(parent) for parent in list(candidate.modules()))
    if not count:
        return visual
    device = next(visual.parameters()).device
    probe = torch.randn(1, 3, *image_size, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.inference_mode():
        expected, found = visual(probe), candidate(probe)
    error = float((expected - found).norm() / expected.norm().clamp_min(1e-12))
    if not error < TOLERANCE:
        log.info("batch norms are left as they are: folding them would change features by %.1e", error)
        return visual
    return candidate


def _fold_children(parent: nn.Module) -> int:
    count = 0
    last: tuple[str, nn.Conv2d] | None = None
    for name, child in list(parent.named_children()):
        if isinstance(child, nn.Conv2d):
            last = (name, child)
        elif isinstance(child, nn.BatchNorm2d):
            if last is not None and last[1].out_channels == child.num_features:
                setattr(parent, last[0], fuse_conv_bn_eval(last[1], child))
                setattr(parent, name, _after_norm(child))
                count += 1
            last = None
        elif not isinstance(child, nn.Identity):
            last = None
    return count


def _after_norm(norm: Any) -> nn.Module:
    """What timm's joined norm and activation still does when the norm is gone."""
    return nn.Sequential(*(part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part))
