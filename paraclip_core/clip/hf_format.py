"""open_clip's weights under the names of Hugging Face's ``CLIPModel``.

Both describe the same network. They differ in names, in attention's input projections (one matrix or three) and in the
orientation of the two projections into the shared space.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

NAMES = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "logit_scale": "logit_scale",
}
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
# Those of the image tower come first, as those of the text tower are their ends.
PREFIXES = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "ln_final.": "text_model.final_layer_norm.",
}
PARTS = {
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
ACTIVATIONS = {"quick_gelu": True, "gelu": False}
"""Hugging Face's names of open_clip's activations, and open_clip's option `quick_gelu` for each."""

PILLOW_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_JOINED = re.compile(r"(.*\.)attn\.in_proj_(weight|bias)")


def to_hf(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An open_clip state dict (``CLIP``, or ``CustomTextCLIP`` with CLIP's text tower) under ``CLIPModel``'s names."""
    renamed: dict[str, torch.Tensor] = {}
    for stored, tensor in tensors.items():
        name = stored.removeprefix("text.")
        joined = _JOINED.fullmatch(name)
        if joined is not None:
            block = _renamed(joined[1], PREFIXES)
            for key, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{block}self_attn.{key}_proj.{joined[2]}"] = part.contiguous()
        elif name in TRANSPOSED:
            renamed[TRANSPOSED[name]] = tensor.T.contiguous()
        else:
            renamed[NAMES.get(name) or _renamed(_renamed(name, PREFIXES), PARTS)] = tensor
    return renamed


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        # Prefixes end with a dot and stand first, parts are found within.
        if old.startswith(".") and old in name:
            return name.replace(old, new, 1)
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
