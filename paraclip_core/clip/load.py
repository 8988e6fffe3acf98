"""Loading CLIP models from a release folder, the Hugging Face hub, or open_clip's list of pretrained weights."""

from __future__ import annotations

import difflib
import json
import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import get_model_config

from paraclip_core.clip.base import ClipModel
from paraclip_core.clip.reference import CONFIG, HUB, LOCAL, WEIGHTS, local_folder
from paraclip_core.errors import ModelError

__all__ = ["load_clip"]

log = logging.getLogger(__name__)


def load_clip(reference: str, device: str | torch.device = "cpu") -> ClipModel:
    """Load a CLIP model in fp32 and eval mode.

    Args:
        reference: a release folder or ``local-dir:FOLDER``, ``hf-hub:ORG/NAME``, or ``ARCHITECTURE:TAG`` of open_clip.
        device: where the weights go.

    Raises:
        ModelError: there is no such model, or its files are damaged. Nothing in a file is ever executed: weights are
            safetensors, or are read with torch's restricted unpickler.
    """
    folder = local_folder(reference)
    if folder is not None:
        clip = _load_folder(folder, reference)
    elif reference.startswith(HUB):
        clip = _load_hub(reference)
    else:
        clip = _load_tag(reference)
    clip.model.to(device).eval()
    return clip


def _load_folder(folder: Path, reference: str) -> ClipModel:
    if not folder.is_dir():
        raise ModelError(f"no model folder {folder}; expected one with {CONFIG} and {WEIGHTS[0]}")
    config = _read_config(folder / CONFIG)
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise ModelError(f"{folder} has no weights; expected {WEIGHTS[0]} beside {CONFIG}")
    model = _create(f"{LOCAL}{folder}", None, f"{weights} does not fit {CONFIG}, or is damaged; fetch it again")
    return _clip(model, config["model_cfg"], reference)


def _load_hub(reference: str) -> ClipModel:
    doing = f"cannot load {reference}; check the name and the connection, or download it and use {LOCAL}FOLDER"
    try:
        config = get_model_config(reference)
    except Exception as error:  # whatever the hub client raises
        raise ModelError(f"{doing}: {error}") from error
    return _clip(_create(reference, None, doing), config, reference)


def _load_tag(reference: str) -> ClipModel:
    architecture, _, tag = reference.rpartition(":")
    config = get_model_config(architecture)
    if config is None:
        raise ModelError(
            f"open_clip has no architecture {architecture!r}{_nearest(architecture, open_clip.list_models())}"
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        raise ModelError(f"{architecture} has no weights {tag!r}; there are: {', '.join(sorted(tags)) or 'none'}")
    known = open_clip.get_pretrained_cfg(architecture, tag) or {}
    trained_quick, built_quick = bool(known.get("quick_gelu")), bool(config.get("quick_gelu"))
    if built_quick and not trained_quick:
        raise ModelError(
            f"{tag} was trained without QuickGELU, which {architecture} has; "
            f"use {architecture.removesuffix('-quickgelu')}:{tag}"
        )
    if trained_quick and not built_quick:
        # open_clip only warns, and the model then loses points on every benchmark.
        log.info("%s was trained with QuickGELU; it is turned on for %s", tag, architecture)
        config["quick_gelu"] = True
    doing = f"cannot get the weights of {reference} (offline?); download them and use {LOCAL}FOLDER"
    return _clip(_create(architecture, tag, doing, trained_quick), config, reference)


def _create(name: str, pretrained: str | None, doing: str, quick_gelu: bool = False) -> torch.nn.Module:
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
            raise ModelError(f"{doing}: {_first_lines(error)}") from error


def _clip(model: torch.nn.Module, model_cfg: dict[str, Any] | None, reference: str) -> ClipModel:
    preprocess = deepcopy(model.get_submodule("visual").preprocess_cfg)
    plain = json.loads(json.dumps(preprocess))
    return ClipModel(model, deepcopy(model_cfg or {}), plain, reference)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}; expected open_clip's JSON with model_cfg") from error
    parts = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(parts, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(parts):
        raise ModelError(f"{path} has no model_cfg with embed_dim, vision_cfg and text_cfg")
    return config


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else "; see open_clip.list_models()"


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
