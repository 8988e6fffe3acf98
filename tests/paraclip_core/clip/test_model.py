"""Frozen encoders, hashes, devices."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from paraclip_core.clip.built_in import built_in_clip
from paraclip_core.clip.model import ClipModel, freeze_image_encoder, image_encoder_hash, pick_device
from paraclip_core.clip.options import ModelOptions
from paraclip_core.errors import ConfigError

SMALL = ModelOptions(text_width=64, text_layers=2, embed_dim=32)

Tiny = Callable[..., ClipModel]


def test_a_frozen_encoder_stays_frozen(tiny: Tiny) -> None:
    clip = built_in_clip(SMALL)
    freeze_image_encoder(clip)
    before = image_encoder_hash(clip)
    clip.model.train()
    assert not any(module.training for module in clip.visual.modules())
    assert clip.model.get_submodule("transformer").training
    assert not any(parameter.requires_grad for parameter in clip.visual.parameters())
    clip.model.encode_image(torch.randn(2, 3, 224, 224))  # type: ignore[operator]
    assert image_encoder_hash(clip) == before
    twin = copy.deepcopy(clip)
    twin.model.train()
    assert not twin.visual.training


def test_the_hash_sees_every_tensor_but_those_of_the_text_encoder() -> None:
    clip = built_in_clip(SMALL)
    visual: Any = clip.visual
    weight, hashes = visual.head.proj.weight, [image_encoder_hash(clip)]
    changes: tuple[Callable[[], object], ...] = (
        lambda: weight[3, 5].fill_(0.0),
        lambda: weight[3, 5].fill_(-0.0),
        lambda: weight[3, 5].nextafter_(torch.tensor(2.0)),
        lambda: visual.trunk.bn2.running_var[0].add_(1e-3),
        lambda: visual.register_buffer("more", torch.zeros(1)),
    )
    with torch.no_grad():
        for change in changes:
            change()
            hashes.append(image_encoder_hash(clip))
        clip.model.get_parameter("text_projection").zero_()
    assert len({*hashes}) == len(hashes) and image_encoder_hash(clip) == hashes[-1]
    assert {len(one) for one in hashes} == {32}


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda")
    for wrong in ("gpu", "cuda:99", "mps:99", "meta"):
        with pytest.raises(ConfigError, match=wrong):
            pick_device(wrong)
