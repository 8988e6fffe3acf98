"""A CLIP model together with what it takes to save it again."""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn

from paraclip_core.errors import ConfigError

__all__ = ["ClipModel", "freeze_image_tower", "pick_device"]


@dataclass
class ClipModel:
    """An open_clip model with the configuration that builds it."""

    model: nn.Module
    """`open_clip.CLIP` or `open_clip.CustomTextCLIP`, in fp32."""
    model_cfg: dict[str, Any]
    """open_clip's `model_cfg`, with `quick_gelu` and `custom_text` where the weights need them."""
    preprocess_cfg: dict[str, Any]
    """open_clip's `preprocess_cfg`: size, mean, std, interpolation, resize_mode …"""
    reference: str
    """What it was loaded from."""

    @property
    def embed_dim(self) -> int:
        """Dimension of the space that images and texts share."""
        return int(self.model_cfg["embed_dim"])

    @property
    def context_length(self) -> int:
        """Longest text in tokens, start and end tokens included."""
        return int(self.model_cfg["text_cfg"].get("context_length", 77))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def visual(self) -> nn.Module:
        """The image tower, projection included."""
        return self.model.get_submodule("visual")

    @property
    def reads_clip_tokens(self) -> bool:
        """Whether its texts are tokenised by CLIP's own tokenizer, so that stored caption tokens fit."""
        text = self.model_cfg["text_cfg"]
        return not text.get("hf_tokenizer_name") and int(text.get("vocab_size", 49408)) == 49408


def freeze_image_tower(clip: ClipModel) -> None:
    """Take the image tower out of training for good: no gradients, and eval mode whatever `model.train()` says.

    Without the second part, `train()` would let its batch norms drift and its dropout act.
    """
    visual = clip.visual
    visual.requires_grad_(False)
    visual.eval()
    visual.train = MethodType(_stay_in_eval, visual)  # type: ignore[method-assign]


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def pick_device(name: str) -> torch.device:
    """`auto` is the first CUDA device where there is one, else the CPU; other names are taken as they are.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"run.device is {name!r}; expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"run.device is {name!r}, but {torch.cuda.device_count()} CUDA devices are here; use auto")
    return device
