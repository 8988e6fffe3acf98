"""A CLIP model with random weights, of any configuration of open_clip."""

from __future__ import annotations

import json
import logging
from copy import deepcopy
from typing import Any

import open_clip
import torch

from paraclip_core.clip.model import ClipModel


def drawn(config: dict[str, Any]) -> Any:
    """The model of a `model_cfg`; the random state stays as it was."""
    open_clip.factory._MODEL_CONFIGS["drawn"] = deepcopy(config)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # open_clip warns that the weights are random
    try:
        with torch.random.fork_rng(devices=[]):
            device = torch.get_default_device()
            return open_clip.create_model("drawn", device=device, pretrained_text=False, pretrained_image=False)
    finally:
        logging.disable(before)
        del open_clip.factory._MODEL_CONFIGS["drawn"]


def drawn_clip(config: dict[str, Any], shift: float = 0.0) -> ClipModel:
    """A model with the same weights each time, whose text encoder differs from others' by `shift`."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = drawn(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
        if shift:
            model.text_projection.add_(shift * torch.randn_like(model.text_projection))
    return ClipModel(model.eval(), config, json.loads(json.dumps(model.visual.preprocess_cfg)), "test")
