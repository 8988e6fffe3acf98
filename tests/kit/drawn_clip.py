"""A CLIP model with random weights, of any configuration of open_clip."""

from __future__ import annotations

import logging
from copy import deepcopy
from typing import Any

import open_clip
import torch


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
