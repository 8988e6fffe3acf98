"""Counted arithmetic against torch's own count."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from paraclip_core.clip.encode import encode_ragged
from paraclip_core.training.effort import matmul_rate, step_flops


@pytest.mark.parametrize("layers", [1, 3])
def test_flops_are_those_of_the_products(tiny: ModuleType, layers: int) -> None:
    clip = tiny.tiny_clip()
    blocks = clip.model.get_submodule("transformer.resblocks")
    blocks.extend([blocks[0]] * (layers - 1))  # type: ignore[operator, index]
    rows, _ = tiny.tiny_rows()
    tokens = rows.texts["caption"].take(np.arange(30))  # no text twice, so that there are as many ends
    with FlopCounterMode(display=False) as counter:
        encode_ragged(clip, tokens).sum().backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(count for name, count in counted.items() if name in (torch.ops.aten.mm, torch.ops.aten.addmm))
    projection = 6 * 30 * 64 * 16
    # The gradient of a bias is a product with a row of ones.
    assert step_flops(clip, tokens) == pytest.approx(products - projection, rel=0.02)


def test_towers_that_are_not_packed_count_nothing(tiny: ModuleType) -> None:
    clip = tiny.tiny_clip()
    rows, _ = tiny.tiny_rows()
    assert matmul_rate(clip, "fp32") > 0 and matmul_rate(clip, "bf16") > 0
    clip.model.get_submodule("transformer").grad_checkpointing = True  # type: ignore[assignment]
    assert step_flops(clip, rows.texts["caption"]) == matmul_rate(clip, "fp32") == 0.0
