"""Small models for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import set_model_preprocess_cfg

from paraclip_core.clip.model import ClipModel
from tests.kit.encoders import TEXT, VISION

PREPROCESS = {
    "size": [32, 32],
    "mode": "RGB",
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tiny_clip(text: dict[str, Any] | None = None, **extra: Any) -> ClipModel:
    """ViT-B-32's architecture in small; `extra` goes into `model_cfg`."""
    config: dict[str, Any] = {
        "embed_dim": 32,
        "vision_cfg": dict(VISION),
        "text_cfg": {**TEXT, **(text or {})},
        **extra,
    }
    arguments = deepcopy(config)
    kind = open_clip.CustomTextCLIP if arguments.pop("custom_text", False) else open_clip.CLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = kind(**arguments)
        # Trained encoders do not have the tiny initial values, at which every text is nearly the same.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "visual" not in name and parameter.ndim > 1:
                    parameter.mul_(3)
    set_model_preprocess_cfg(model, deepcopy(PREPROCESS))
    return ClipModel(model.eval(), config, deepcopy(PREPROCESS), "tiny")


@pytest.fixture(scope="session")
def tiny() -> Callable[..., ClipModel]:
    return tiny_clip
