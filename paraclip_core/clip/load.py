"""Loading CLIP models from open_clip folders, weights files, the hub or open_clip's list."""

from __future__ import annotations

import argparse
import json
import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from open_clip.factory import get_model_config
from open_clip.hf_model import HFTextEncoder

from paraclip_core.clip.model import ClipModel, stay_in_eval
from paraclip_core.clip.reference import (
    CONFIG,
    HUB,
    LOCAL,
    WEIGHTS,
    check_reference,
    local_file,
    local_folder,
    model_files,
    unknown_architecture,
)
from paraclip_core.errors import ModelError
from paraclip_core.text_safety import one_line

log = logging.getLogger(__name__)


def load_clip(reference: str, device: str | torch.device = "cpu") -> ClipModel:
    """Load a CLIP model in fp32 and eval mode.

    `reference` is a release folder of open_clip, with or without ``local-dir:`` before it; ``ARCHITECTURE:PATH``,
    weights for one of open_clip's architectures (open_clip's and LaCLIP's checkpoints, safetensors; OpenAI's and
    LaCLIP's need a name with QuickGELU, for example ``ViT-L-14-quickgelu:PATH``); ``hf-hub:ORG/NAME``; or
    ``ARCHITECTURE:TAG`` of open_clip.
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
        # With dropout a step would depend on how its texts are cut into chunks.
        stay_in_eval(text)
    for name, weights in clip.model.named_parameters():
        if not weights.isfinite().all():
            raise ModelError(
                f"{reference} has weights that are not finite (NaN or infinite) in {name}, so nothing can be "
                "encoded with it; fetch it again, or use a checkpoint from before its training diverged"
            )
    clip.model.to(device).eval()
    return clip


def _load_local(place: Path, reference: str) -> ClipModel:
    if place.is_file():
        raise ModelError(f"{place} does not state its architecture; use ARCHITECTURE:{place}")
    config_file, weights = model_files(reference)[:2]
    if not weights.is_file():
        raise ModelError(f"{place} has no weights; expected {weights.name} next to {CONFIG}")
    model = _create(f"{LOCAL}{place}", None, f"{weights} does not fit {CONFIG}, or one of them is damaged")
    return _clip(model, json.loads(config_file.read_text("utf-8"))["model_cfg"], reference)


def _load_file(architecture: str, file: Path, reference: str) -> ClipModel:
    config = _architecture(architecture)
    if not file.is_file():
        raise ModelError(f"there is no weights file {file}")
    problem = (
        f"{file} does not fit {architecture}, is damaged, or holds more than tensors and plain values; name its "
        "architecture, fetch it again, or convert it (docs/tuned-model.md says how)"
    )
    model = _create(architecture, str(file), problem)
    log.info(
        "%s does not state its activation; %s has %s (state dicts of OpenAI and LaCLIP need QuickGELU, which open_clip "
        "has in architectures named …-quickgelu)",
        file,
        architecture,
        "QuickGELU" if config.get("quick_gelu") else "GELU",
    )
    return _clip(model, config, reference)


def _load_hub(reference: str) -> ClipModel:
    problem = f"cannot load {reference}; check the name and the connection, or download it and use {LOCAL}FOLDER"
    try:
        config = get_model_config(reference)
    except Exception as error:  # the hub client has many error types
        raise ModelError(f"{problem}: {error}") from error
    return _clip(_create(reference, None, problem), config, reference, reference.removeprefix(HUB).rstrip("/"))


def _commit(name: str) -> str | None:
    """The commit of a cached hub model: the cache keeps each commit's files in a folder of that name.

    None if the model is not in the cache.
    """
    files = (try_to_load_from_cache(name, file) for file in (CONFIG, *WEIGHTS))
    return next((Path(file).parent.name for file in files if isinstance(file, str)), None)


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
        log.info("%s was trained with QuickGELU, which is turned on for %s", tag, architecture)
        config["quick_gelu"] = True
    problem = f"cannot get the weights of {reference} (offline?); download them and use {LOCAL}FOLDER"
    hub_name = str(pretrained.get("hf_hub") or "").rstrip("/")
    return _clip(_create(architecture, tag, problem, trained_quick), config, reference, hub_name)


def _create(name: str, pretrained: str | None, problem: str, quick_gelu: bool = False) -> torch.nn.Module:
    # Building a model draws random weights before loading replaces them; the caller's random state is preserved.
    # Training scripts save their options as a Namespace, which is harmless to unpickle.
    with torch.random.fork_rng(devices=[]), torch.serialization.safe_globals([argparse.Namespace]):
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
        except Exception as error:  # open_clip, safetensors, torch and the hub each have their own errors
            raise ModelError(f"{problem}: {one_line(error)}") from error


def _clip(model: torch.nn.Module, model_cfg: dict[str, Any] | None, reference: str, hub_name: str = "") -> ClipModel:
    preprocess = json.loads(json.dumps(model.get_submodule("visual").preprocess_cfg))
    commit = _commit(hub_name) if hub_name else None
    return ClipModel(model, deepcopy(model_cfg or {}), preprocess, reference, hub_name or None, commit)
