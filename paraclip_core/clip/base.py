"""A CLIP model together with what it takes to save it again."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import nn

from paraclip_core.errors import ConfigError

__all__ = ["UNSEEN", "ClipModel", "freeze_image_tower", "pick_device", "stay_in_eval"]

CLIP_VOCABULARY = 49408
UNSEEN = ("text_decoder.", "logit_bias")
"""How the names of parameters begin that a contrastive loss does not see."""


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
    hub_name: str | None = None
    """Its name on the Hugging Face hub, where it comes from there."""
    revision: str | None = None
    """The commit of the hub that it was read from, where that is known."""
    tokenizer: Any = field(default=None, repr=False, compare=False)
    """Kept by :func:`paraclip_core.clip.tokenizer.model_tokenizer` once it is loaded."""

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
        own = text.get("hf_tokenizer_name") or text.get("hf_model_name") or text.get("tokenizer_kwargs")
        return not own and int(text.get("vocab_size", CLIP_VOCABULARY)) >= CLIP_VOCABULARY

    @property
    def vocab_size(self) -> int:
        """How many tokens the text tower knows; 0 where it does not say."""
        known = getattr(self.model, "vocab_size", 0) or getattr(getattr(self.model, "text", None), "vocab_size", 0)
        return int(known)

    @property
    def token_dtype(self) -> type[np.integer]:
        """Type that its token ids fit in: uint16, int32 where the vocabulary is larger."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.int32


def freeze_image_tower(clip: ClipModel) -> None:
    """Take all but the text tower and the logit scale out of training for good.

    The image tower gets no gradients and stays in eval mode whatever `model.train()` says: otherwise `train()` would
    let its batch norms drift and its dropout act. CoCa's decoder and SigLIP's logit bias, which a contrastive loss over
    softmaxes does not see, are kept as they are too.
    """
    clip.visual.requires_grad_(False)
    stay_in_eval(clip.visual)
    for name, parameter in clip.model.named_parameters():
        if name.startswith(UNSEEN):
            parameter.requires_grad_(False)


def stay_in_eval(module: nn.Module) -> None:
    """Put a module in eval mode, and keep it there whatever `train()` says."""
    module.eval()
    module.train = MethodType(_unmoved, module)  # type: ignore[method-assign]


def _unmoved(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def pick_device(name: str) -> torch.device:
    """`auto` is the first CUDA device where there is one, else the CPU; other names are torch's.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        count = torch.get_device_module(device).device_count()
    except RuntimeError as error:
        raise ConfigError(f"run.device is {name!r}; expected auto, cpu, cuda or cuda:N") from error
    if (device.index or 0) >= count:
        raise ConfigError(f"run.device is {name!r}, but {count} {device.type.upper()} devices are here; use auto")
    return device
