"""What names an image tower and its preprocessing: equal hashes mean that stored image features stay valid."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from paraclip_core.clip.base import ClipModel

__all__ = ["image_architecture", "image_tower_hash", "preprocess_hash", "weights_hash"]


def image_tower_hash(clip: ClipModel) -> str:
    """32 hex digits of blake2b over names, dtypes, shapes and bytes of every parameter and buffer of the image tower.

    Buffers count: batch-norm statistics change an image's features as much as weights do.
    """
    return _hash(clip.visual)


def image_architecture(clip: ClipModel) -> dict[str, Any]:
    """The options that say how an image tower computes with its weights, as the model's configuration spells them."""
    return {"quick_gelu": bool(clip.model_cfg.get("quick_gelu")), **clip.model_cfg["vision_cfg"]}


def weights_hash(clip: ClipModel) -> str:
    """The same of the whole model: what a base is called where no hub has given it a revision."""
    return _hash(clip.model)


def _hash(module: nn.Module) -> str:
    tensors: dict[str, torch.Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def preprocess_hash(clip: ClipModel) -> str:
    """32 hex digits of blake2b over the image preprocessing's configuration."""
    text = json.dumps(clip.preprocess_cfg, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
