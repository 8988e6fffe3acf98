"""Hugging Face's ``CLIPModel`` in open_clip's names and back.

Both describe the same network. They differ in names, in attention's input projections (one matrix or three) and in the
orientation of the two projections into the shared space.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from paraclip_core.clip.reference import HF_CONFIG, HF_PREPROCESS
from paraclip_core.errors import ModelError

__all__ = ["ACTIVATIONS", "from_hf", "hf_model_cfg", "hf_preprocess_cfg", "to_hf"]

NAMES = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "logit_scale": "logit_scale",
}
TRANSPOSED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
PREFIXES = {
    "text_model.final_layer_norm.": "ln_final.",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
}
PARTS = {
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}
ACTIVATIONS = {"quick_gelu": True, "gelu": False}
"""Hugging Face's names of open_clip's activations, and open_clip's option `quick_gelu` for each."""

PILLOW_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_ATTENTION = re.compile(r"(.*\.)self_attn\.([qkv])_proj\.(weight|bias)")
_JOINED = re.compile(r"(.*\.)attn\.in_proj_(weight|bias)")


def from_hf(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A ``CLIPModel`` state dict under open_clip's names; unknown names stay."""
    renamed: dict[str, torch.Tensor] = {}
    attention: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.endswith("position_ids"):
            continue  # older files store the numbers from 0
        part = _ATTENTION.fullmatch(name)
        if part is not None:
            joined = f"{_renamed(part[1], PREFIXES)}attn.in_proj_{part[3]}"
            attention.setdefault(joined, {})[part[2]] = tensor
        elif name in TRANSPOSED:
            renamed[TRANSPOSED[name]] = tensor.T.contiguous()
        else:
            renamed[NAMES.get(name) or _renamed(_renamed(name, PREFIXES), PARTS)] = tensor
    for name, parts in attention.items():
        renamed[name] = torch.cat([parts[key] for key in "qkv" if key in parts])
    return renamed


def to_hf(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An open_clip state dict (``CLIP``, or ``CustomTextCLIP`` with CLIP's text tower) under ``CLIPModel``'s names."""
    names, transposed, parts = ({new: old for old, new in table.items()} for table in (NAMES, TRANSPOSED, PARTS))
    # The image tower's prefixes first: those of the text tower are their ends.
    prefixes = {new: old for old, new in reversed(PREFIXES.items())}
    renamed: dict[str, torch.Tensor] = {}
    for stored, tensor in tensors.items():
        name = stored.removeprefix("text.")
        joined = _JOINED.fullmatch(name)
        if joined is not None:
            block = _renamed(joined[1], prefixes)
            for key, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{block}self_attn.{key}_proj.{joined[2]}"] = part.contiguous()
        elif name in transposed:
            renamed[transposed[name]] = tensor.T.contiguous()
        else:
            renamed[names.get(name) or _renamed(_renamed(name, prefixes), parts)] = tensor
    return renamed


def hf_model_cfg(folder: Path) -> dict[str, Any]:
    """open_clip's `model_cfg` for a folder with a ``CLIPModel``.

    Raises:
        ModelError: the configuration is damaged, or is another model's.
    """
    from transformers import CLIPConfig

    path = folder / HF_CONFIG
    kind = _json(path).get("model_type")
    if kind != "clip":
        raise ModelError(
            f"{path} is of a model of type {kind!r}; of Hugging Face's models 'clip' can be loaded, of others use "
            "open_clip's release (hf-hub:…, or a folder with open_clip_config.json)"
        )
    try:
        config: Any = CLIPConfig.from_pretrained(folder)
        text, vision = config.text_config, config.vision_config
        activations = {text.hidden_act, vision.hidden_act}
        if len(activations) > 1 or not activations <= set(ACTIVATIONS):
            raise ModelError(f"the activations {sorted(activations)} are not one of {sorted(ACTIVATIONS)}")
        return {
            "embed_dim": config.projection_dim,
            "quick_gelu": ACTIVATIONS[text.hidden_act],
            "vision_cfg": {
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                **_tower(vision),
                "head_width": vision.hidden_size // vision.num_attention_heads,
            },
            "text_cfg": {
                "context_length": text.max_position_embeddings,
                "vocab_size": text.vocab_size,
                **_tower(text),
                "heads": text.num_attention_heads,
            },
        }
    except Exception as error:  # transformers checks the values in its own ways
        raise ModelError(f"{path} does not describe a CLIP model that open_clip can build: {error}") from error


def hf_preprocess_cfg(folder: Path) -> dict[str, Any]:
    """open_clip's `preprocess_cfg` from ``preprocessor_config.json``; empty (CLIP's own) where there is none.

    Raises:
        ModelError: the file is damaged.
    """
    path = folder / HF_PREPROCESS
    if not path.is_file():
        return {}
    stored = _json(path)
    config: dict[str, Any] = {key: stored[f"image_{key}"] for key in ("mean", "std") if f"image_{key}" in stored}
    if "resample" in stored:
        resample = stored["resample"]
        if not isinstance(resample, int) or resample not in PILLOW_FILTERS:
            raise ModelError(f"{path} resamples by {resample!r}; expected one of {PILLOW_FILTERS}")
        config["interpolation"] = PILLOW_FILTERS[resample]
    config["resize_mode"] = "shortest" if stored.get("do_center_crop", True) else "squash"
    return config


def _tower(config: Any) -> dict[str, Any]:
    return {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
        **({} if config.layer_norm_eps == 1e-5 else {"norm_kwargs": {"eps": config.layer_norm_eps}}),
    }


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        # Prefixes end with a dot and stand first, parts are found within.
        if old.startswith(".") and old in name:
            return name.replace(old, new, 1)
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object")
    return content
