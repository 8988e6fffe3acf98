"""A CLIP model with its configuration, its device, the frozen image encoder and hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import nn

from paraclip_core.errors import ConfigError

CLIP_VOCABULARY = 49408
LOGITS = ("logit_scale", "logit_bias")
"""Parameters that turn a cosine into a logit; only SigLIP has the bias."""
UNSEEN = "text_decoder."
"""Prefix of parameters that contrastive losses do not reach: CoCa's decoder."""


@dataclass
class ClipModel:
    """An open_clip model with its configuration."""

    model: nn.Module = field(repr=False)
    """`open_clip.CLIP` or `open_clip.CustomTextCLIP`, in fp32."""
    model_cfg: dict[str, Any] = field(repr=False)
    """open_clip's `model_cfg`, with `quick_gelu` and `custom_text` if the weights need them."""
    preprocess_cfg: dict[str, Any] = field(repr=False)
    """open_clip's `preprocess_cfg`: size, mean, std, interpolation, resize_mode …"""
    reference: str
    """The reference it was loaded from."""
    hub_name: str | None = None
    """Its name on the Hugging Face hub, if it was loaded from there."""
    revision: str | None = None
    """The hub's commit, if known."""
    tokenizer: Any = field(default=None, repr=False, compare=False)
    """Set by :func:`paraclip_core.clip.encode.model_tokenizer` once it is loaded."""

    @property
    def embed_dim(self) -> int:
        """Dimension of the space that images and texts share."""
        return int(self.model_cfg["embed_dim"])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that it reads, in pixels; open_clip states those of a ResNet as one number."""
        size = self.preprocess_cfg["size"]
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def context_length(self) -> int:
        """Longest text in tokens, start and end tokens included."""
        return int(self.model_cfg["text_cfg"].get("context_length", 77))

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def visual(self) -> nn.Module:
        """The image encoder, projection included."""
        return self.model.get_submodule("visual")

    @property
    def sigmoid(self) -> bool:
        """Whether it has a logit bias: it was trained with the pairwise sigmoid loss (SigLIP), not with softmaxes."""
        return getattr(self.model, "logit_bias", None) is not None

    @property
    def reads_clip_tokens(self) -> bool:
        """Whether it uses CLIP's own tokenizer."""
        text = self.model_cfg["text_cfg"]
        own = text.get("hf_tokenizer_name") or text.get("hf_model_name") or text.get("tokenizer_kwargs")
        return not own and int(text.get("vocab_size", CLIP_VOCABULARY)) >= CLIP_VOCABULARY

    @property
    def vocab_size(self) -> int:
        """Size of the text encoder's vocabulary; 0 if unknown."""
        size = getattr(self.model, "vocab_size", 0) or getattr(getattr(self.model, "text", None), "vocab_size", 0)
        return int(size)

    @property
    def token_dtype(self) -> type[np.integer]:
        """Dtype of its token ids: uint16, or int32 for a larger vocabulary."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.int32


def freeze_image_encoder(clip: ClipModel) -> None:
    """Freeze everything except the text encoder and the logit scale.

    A model with a logit bias keeps its scale and bias: they turn cosines into probabilities, for which users set
    thresholds.
    """
    clip.visual.requires_grad_(False)
    stay_in_eval(clip.visual)
    fixed = LOGITS if clip.sigmoid else ()
    for name, parameter in clip.model.named_parameters():
        if name.startswith(UNSEEN) or name in fixed:
            parameter.requires_grad_(False)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that require gradients, by name: text encoder and logit scale once the image encoder is frozen."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def stay_in_eval(module: nn.Module) -> None:
    """Put a module in eval mode, and keep it there even after `train()`."""
    module.eval()
    module.train = MethodType(lambda same, mode=True: same, module)  # type: ignore[method-assign]


def pick_device(name: str) -> torch.device:
    """Resolve a device name: `auto` is the first CUDA device, or else the CPU; other names are torch's."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        count = torch.get_device_module(device).device_count()
    except RuntimeError as error:
        raise ConfigError(f"run.device is {name!r}; expected auto, cpu, cuda or cuda:N") from error
    if (device.index or 0) >= count:
        raise ConfigError(f"run.device is {name!r}, but {count} {device.type.upper()} devices are available; use auto")
    return device


def image_encoder_hash(clip: ClipModel) -> str:
    """32 hex digits of blake2b over names, dtypes, shapes and bytes of the image encoder's parameters and buffers.

    Buffers count: batch-norm statistics change an image's features as much as weights do.
    """
    return _hash(clip.visual)


def weights_hash(clip: ClipModel) -> str:
    """The same digest of the whole model; it identifies a base without a hub revision, and a run's starting point."""
    return _hash(clip.model)


def _hash(module: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    add_tensors(digest, {**dict(module.named_parameters()), **dict(module.named_buffers())})
    return digest.hexdigest()


def add_tensors(digest: hashlib.blake2b, tensors: Mapping[str, torch.Tensor]) -> None:
    """Add names, dtypes, shapes and bytes to a digest, in the order of the names."""
    for name, stored in sorted(tensors.items()):
        tensor = stored.detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)


def preprocess_hash(clip: ClipModel) -> str:
    """32 hex digits of blake2b over the image preprocessing configuration."""
    text = json.dumps(clip.preprocess_cfg, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def image_architecture(clip: ClipModel) -> dict[str, Any]:
    """The options of `model_cfg` that determine how an image encoder uses its weights."""
    return {"quick_gelu": bool(clip.model_cfg.get("quick_gelu")), **clip.model_cfg["vision_cfg"]}
