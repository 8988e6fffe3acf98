"""Building an open_clip model from its configuration, without network, and putting weights into it."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from paraclip_core.errors import ModelError, one_line

__all__ = ["build_model", "fit_weights", "openai_model_cfg"]


def build_model(
    model_cfg: Mapping[str, Any], preprocess_cfg: Mapping[str, Any], name: str, text_config: Path | None = None
) -> torch.nn.Module:
    """An open_clip model with random weights, of the class that open_clip itself would choose.

    The global random state stays as it was.

    Args:
        model_cfg: open_clip's `model_cfg`.
        preprocess_cfg: open_clip's `preprocess_cfg`, or a part of it.
        name: for messages.
        text_config: the Hugging Face configuration of the text tower, instead of the one that the hub has.

    Raises:
        ModelError: there is no such model.
    """
    config = deepcopy(dict(model_cfg))
    text, vision = config["text_cfg"], config["vision_cfg"]
    if vision.get("timm_model_name"):
        vision["timm_model_pretrained"] = False
    hf_name = text.get("hf_model_name")
    if hf_name:
        text["hf_model_pretrained"] = False
        if text_config is not None:
            text["hf_model_name"] = str(text_config)
    custom = config.pop("custom_text", False) or bool(hf_name)
    coca = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    kind: Any = coca if custom else open_clip.CLIP
    try:
        with torch.random.fork_rng(devices=[]):
            model = kind(**config)
        preprocess = merge_preprocess_dict(asdict(PreprocessCfg()), dict(preprocess_cfg))
    except Exception as error:  # whatever the parts raise
        hint = (
            f"; it needs the configuration of {hf_name}, which is not on this machine: connect, or use a release folder"
            if isinstance(error, OSError) and hf_name
            else ""
        )
        raise ModelError(
            f"cannot build the model of {name} from its configuration (open_clip_config.json, or its "
            f"architecture): {one_line(error)}{hint}"
        ) from error
    preprocess["size"] = getattr(model.visual, "image_size", preprocess.get("size"))
    set_model_preprocess_cfg(model, preprocess)
    return model


def fit_weights(model: Any, tensors: dict[str, torch.Tensor], doing: str) -> None:
    """Load all weights, under whatever names open_clip's versions and relatives have stored them.

    Unlike open_clip's own loader it does not stretch positional tables: that would be another image tower.

    Raises:
        ModelError: a tensor is missing, has another shape, or belongs to no part of the model; begins with `doing`.
    """
    try:
        found = convert_state_dict(model, tensors)
        if "positional_embedding" in found and not hasattr(model, "positional_embedding"):
            found = convert_to_custom_text_state_dict(found)
        own = model.state_dict()
        for name in ("logit_scale", "logit_bias"):
            if name in found and name in own and found[name].numel() == own[name].numel():
                found[name] = found[name].reshape(own[name].shape)
        if "logit_bias" in own and "logit_bias" not in found:
            found["logit_bias"] = torch.zeros_like(own["logit_bias"])
        # Hugging Face's older towers stored what only counts from 0.
        found = {name: tensor for name, tensor in found.items() if name in own or not name.endswith("position_ids")}
        model.load_state_dict(found, strict=True)
    except Exception as error:  # torch's and the converters' own
        raise ModelError(f"{doing}: {one_line(error)}") from error


def openai_model_cfg(tensors: Mapping[str, torch.Tensor], name: str) -> dict[str, Any]:
    """The `model_cfg` of one of OpenAI's models, which is told by the shapes of its weights.

    Raises:
        ModelError: they are not of such a model.
    """
    try:
        text_width = tensors["ln_final.weight"].shape[0]
        text = {
            "context_length": tensors["positional_embedding"].shape[0],
            "vocab_size": tensors["token_embedding.weight"].shape[0],
            "width": text_width,
            "heads": text_width // 64,
            "layers": _blocks(tensors, "transformer.resblocks."),
        }
        vision = _vit(tensors) if "visual.proj" in tensors else _resnet(tensors)
        embed_dim = tensors["text_projection"].shape[1]
    except KeyError as error:
        raise ModelError(f"{name} has no tensor {error}; it is no CLIP model of OpenAI") from error
    return {"embed_dim": embed_dim, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}


def _vit(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    width, _, _, patch = tensors["visual.conv1.weight"].shape
    grid = round((tensors["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    layers = _blocks(tensors, "visual.transformer.resblocks.")
    return {"layers": layers, "width": width, "patch_size": patch, "image_size": patch * grid}


def _resnet(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    grid = round((tensors["visual.attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
    return {
        "layers": [_blocks(tensors, f"visual.layer{number}.") for number in (1, 2, 3, 4)],
        "width": tensors["visual.layer1.0.conv1.weight"].shape[0],
        "patch_size": None,
        "image_size": grid * 32,
    }


def _blocks(tensors: Mapping[str, torch.Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})
