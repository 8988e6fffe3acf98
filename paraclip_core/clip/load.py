"""Loading CLIP models: open_clip's folders, weights files, the Hugging Face hub, open_clip's list."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from open_clip.convert import convert_state_dict
from open_clip.factory import get_model_config
from open_clip.hf_model import HFTextEncoder
from open_clip.model import convert_to_custom_text_state_dict, set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from PIL import Image

from paraclip_core.clip.encode import image_transform
from paraclip_core.clip.formats import read_weights
from paraclip_core.clip.model import ClipModel, stay_in_eval
from paraclip_core.clip.reference import (
    CONFIG,
    HUB,
    LOCAL,
    TEXT_CONFIG,
    WEIGHTS,
    check_reference,
    local_file,
    local_folder,
    model_files,
    unknown_architecture,
)
from paraclip_core.errors import ModelError, one_line

log = logging.getLogger(__name__)


def load_clip(reference: str, device: str | torch.device = "cpu") -> ClipModel:
    """Load a CLIP model in fp32 and eval mode.

    Args:
        reference: one of

            - a release folder of open_clip, with or without ``local-dir:`` before it;
            - ``ARCHITECTURE:PATH``, weights for one of open_clip's architectures: open_clip's and LaCLIP's checkpoints,
              safetensors. OpenAI's and LaCLIP's need the architecture's name with QuickGELU, for example
              ``ViT-L-14-quickgelu:PATH``;
            - ``hf-hub:ORG/NAME``;
            - ``ARCHITECTURE:TAG`` of open_clip.
        device: where the weights go.
    """
    folder, file = local_folder(reference), local_file(reference)
    if file is None:
        check_reference(reference)
    if file is not None:
        clip = _load_file(*file, reference)
    elif folder is not None:
        clip = _load_local(folder, reference)
    elif reference.startswith(HUB):
        clip = _load_hub(reference)
    else:
        clip = _load_tag(reference)
    text: Any = getattr(clip.model, "text", None)
    if isinstance(text, HFTextEncoder):
        # Its dropout would make a step depend on how its texts are cut into chunks.
        stay_in_eval(text)
    _need_finite(clip.model, reference)
    _need_transform(clip, reference)
    clip.model.to(device).eval()
    return clip


def _need_finite(model: torch.nn.Module, reference: str) -> None:
    for name, weights in model.named_parameters():
        if not weights.isfinite().all():
            raise ModelError(
                f"{reference} has weights that are no numbers (NaN or infinite) in {name}, so that nothing can be "
                "encoded with it; fetch it again, or use a checkpoint from before its training diverged"
            )


def _need_transform(clip: ClipModel, reference: str) -> None:
    problem = f"{reference} says of how it sees images (preprocess_cfg, preprocessor_config.json) what cannot be done"
    try:
        pixels = image_transform(clip)(Image.new("RGB", (8, 8)))
    except Exception as error:  # open_clip's and torchvision's own
        raise ModelError(f"{problem}: {one_line(error) or type(error).__name__}; fetch it again") from error
    if not pixels.isfinite().all():
        raise ModelError(f"{problem}: its mean and std give no numbers; fetch it again")


def _load_local(place: Path, reference: str) -> ClipModel:
    if place.is_file():
        raise ModelError(f"{place} does not say which architecture it is for; use ARCHITECTURE:{place}")
    config_file, weights = model_files(reference)[:2]
    if not weights.is_file() and config_file.is_file():
        raise ModelError(f"{place} has no weights; expected {weights.name} beside {config_file.name}")
    config = _read_config(config_file)
    source = place / TEXT_CONFIG if (place / TEXT_CONFIG).is_file() else None
    return _local(
        config["model_cfg"],
        config.get("preprocess_cfg") or {},
        read_weights(weights),
        reference,
        f"{weights} does not fit {CONFIG}",
        source,
    )


def _load_file(architecture: str, file: Path, reference: str) -> ClipModel:
    config = _architecture(architecture)
    tensors = read_weights(file)
    log.info(
        "%s does not tell its activation; %s has %s (state dicts of OpenAI and LaCLIP need QuickGELU, which open_clip "
        "has in architectures named …-quickgelu)",
        file,
        architecture,
        "QuickGELU" if config.get("quick_gelu") else "GELU",
    )
    if "image_projection" in tensors:
        raise ModelError(
            f"{file} has an image tower that open_clip does not have (LaCLIP's for CC3M, CC12M and RedCaps); "
            "of LaCLIP use the models for LAION-400M"
        )
    return _local(config, {}, tensors, reference, f"{file} does not fit {architecture}")


def _local(
    model_cfg: Mapping[str, Any],
    preprocess_cfg: Mapping[str, Any],
    tensors: dict[str, torch.Tensor],
    reference: str,
    problem: str,
    text_config: Path | None = None,
) -> ClipModel:
    model = build_model(model_cfg, preprocess_cfg, reference, text_config)
    fit_weights(model, tensors, f"{problem}, or is damaged; name the architecture that it is of, or fetch it again")
    return _clip(model, dict(model_cfg), reference)


def _load_hub(reference: str) -> ClipModel:
    problem = f"cannot load {reference}; check the name and the connection, or download it and use {LOCAL}FOLDER"
    try:
        config = get_model_config(reference)
    except Exception as error:  # whatever the hub client raises
        raise ModelError(f"{problem}: {error}") from error
    clip = _clip(_create(reference, None, problem), config, reference)
    return _from_hub(clip, reference.removeprefix(HUB))


def _from_hub(clip: ClipModel, name: str) -> ClipModel:
    """Note the model's origin; the hub's cache keeps each commit's files in a folder of its name."""
    name = name.rstrip("/")
    clip.hub_name = name or None
    for file in (CONFIG, *WEIGHTS) if name else ():
        cached = try_to_load_from_cache(name, file)
        if isinstance(cached, str):
            clip.revision = Path(cached).parent.name
            break
    return clip


def _architecture(name: str) -> dict[str, Any]:
    config = get_model_config(name)
    if config is None:
        raise unknown_architecture(name, open_clip.list_models())
    return config


def _load_tag(reference: str) -> ClipModel:
    architecture, _, tag = reference.rpartition(":")
    config = _architecture(architecture)
    pretrained = open_clip.get_pretrained_cfg(architecture, tag) or {}
    trained_quick, built_quick = bool(pretrained.get("quick_gelu")), bool(config.get("quick_gelu"))
    if built_quick and not trained_quick:
        raise ModelError(
            f"{tag} was trained without QuickGELU, which {architecture} has; "
            f"use {architecture.removesuffix('-quickgelu')}:{tag}"
        )
    if trained_quick and not built_quick:
        # open_clip only warns, and the model then loses points on every benchmark.
        log.info("%s was trained with QuickGELU; it is turned on for %s", tag, architecture)
        config["quick_gelu"] = True
    problem = f"cannot get the weights of {reference} (offline?); download them and use {LOCAL}FOLDER"
    clip = _clip(_create(architecture, tag, problem, trained_quick), config, reference)
    return _from_hub(clip, str(pretrained.get("hf_hub") or ""))


def _create(name: str, pretrained: str | None, problem: str, quick_gelu: bool = False) -> torch.nn.Module:
    # Building a model draws random weights, which the loaded ones replace: the caller's random state stays as it was.
    with torch.random.fork_rng(devices=[]):
        try:
            return open_clip.create_model(
                name,
                pretrained,
                precision="fp32",
                device="cpu",
                force_quick_gelu=quick_gelu,
                require_pretrained=True,
                weights_only=True,
            )
        except Exception as error:  # open_clip, safetensors, torch and the hub each raise their own
            raise ModelError(f"{problem}: {one_line(error)}") from error


def _clip(model: torch.nn.Module, model_cfg: dict[str, Any] | None, reference: str) -> ClipModel:
    preprocess = deepcopy(model.get_submodule("visual").preprocess_cfg)
    plain = json.loads(json.dumps(preprocess))
    return ClipModel(model, deepcopy(model_cfg or {}), plain, reference)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {error}; expected open_clip's JSON with model_cfg") from error
    model_cfg = config.get("model_cfg") if isinstance(config, dict) else None
    parts = model_cfg if isinstance(model_cfg, dict) else {}
    if "embed_dim" not in parts or not all(isinstance(parts.get(name), dict) for name in ("vision_cfg", "text_cfg")):
        raise ModelError(f"{path} has no model_cfg with embed_dim, vision_cfg and text_cfg")
    return config


def build_model(
    model_cfg: Mapping[str, Any], preprocess_cfg: Mapping[str, Any], name: str, text_config: Path | None = None
) -> torch.nn.Module:
    """An open_clip model with random weights, of the class that open_clip chooses; the random state stays as it was.

    Args:
        model_cfg: open_clip's `model_cfg`.
        preprocess_cfg: open_clip's `preprocess_cfg`, or a part of it.
        name: for messages.
        text_config: the Hugging Face configuration of the text tower in place of the hub's.
    """
    kind, config = _open_clip_class(model_cfg, text_config)
    try:
        with torch.random.fork_rng(devices=[]):
            model = kind(**config)
        preprocess = merge_preprocess_dict(asdict(PreprocessCfg()), dict(preprocess_cfg))
    except Exception as error:  # whatever the parts raise
        hf_name = model_cfg["text_cfg"].get("hf_model_name")
        offline = (
            f"; it needs {hf_name}'s configuration, which is not on this machine: connect, or use a release folder"
        )
        hint = offline if isinstance(error, OSError) and hf_name else ""
        raise ModelError(
            f"cannot build the model of {name} from its configuration (open_clip_config.json, or its "
            f"architecture): {one_line(error)}{hint}"
        ) from error
    preprocess["size"] = getattr(model.visual, "image_size", preprocess.get("size"))
    set_model_preprocess_cfg(model, preprocess)
    return model


def _open_clip_class(model_cfg: Mapping[str, Any], text_config: Path | None) -> tuple[Any, dict[str, Any]]:
    """open_clip's class for a configuration, and its arguments, by which the model loads no weights of its parts."""
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
    return (coca if custom else open_clip.CLIP), config


def fit_weights(model: Any, tensors: dict[str, torch.Tensor], problem: str) -> None:
    """Load all weights, under the names of any version or relative of open_clip.

    Positional tables are not stretched, as open_clip's loader does: that would be another image tower.
    """
    try:
        weights = convert_state_dict(model, tensors)
        if "positional_embedding" in weights and not hasattr(model, "positional_embedding"):
            weights = convert_to_custom_text_state_dict(weights)
        own = model.state_dict()
        for name in ("logit_scale", "logit_bias"):
            if name in weights and name in own and weights[name].numel() == own[name].numel():
                weights[name] = weights[name].reshape(own[name].shape)
        if "logit_bias" in own and "logit_bias" not in weights:
            weights["logit_bias"] = torch.zeros_like(own["logit_bias"])
        # Hugging Face's older towers stored what only counts from 0.
        weights = {name: tensor for name, tensor in weights.items() if name in own or not name.endswith("position_ids")}
        model.load_state_dict(weights, strict=True)
    except Exception as error:  # torch's and the converters' own
        raise ModelError(f"{problem}: {one_line(error)}") from error
