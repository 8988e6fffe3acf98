"""Weights files, read without running anything that is in them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from paraclip_core.errors import ModelError, one_line

HOLDERS = ("state_dict", "model_state_dict", "model")
"""Where training scripts keep the weights among what else they save; open_clip and LaCLIP: the first."""


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint by name, without the prefix that data-parallel training gives them.

    Reads safetensors and torch's files (with torch's restricted unpickler).
    """
    if not path.is_file():
        raise ModelError(f"no weights file {path}")
    if path.suffix in (".npz", ".npy"):
        raise ModelError(
            f"{path} is in big_vision's format, which is not read; use the same model as open_clip has it, for example "
            "ViT-B-16-SigLIP:webli"
        )
    if path.suffix == ".safetensors":
        tensors: Any = _safetensors(path)
    else:
        tensors = _torch_file(path)
    while names := [name for name in HOLDERS if isinstance(tensors.get(name), Mapping)]:
        tensors = tensors[names[0]]
    weights = {
        name: value for name, value in tensors.items() if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    if not weights:
        raise ModelError(f"{path} holds no tensors by name; expected the state_dict of a CLIP model")
    return weights


def _safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except Exception as error:  # safetensors' own, or an OSError
        raise ModelError(f"{path} is damaged or no safetensors file ({error}); fetch it again") from error


def _torch_file(path: Path) -> Mapping[str, Any]:
    try:
        # Training scripts save their options as a Namespace, which is only a dict with dots.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damage happens to hit
        raise ModelError(
            f"{path} is damaged, or holds more than tensors and plain values, which are all that is read "
            f"({one_line(error)}); fetch it again, or where you trust it, save its state_dict as safetensors "
            "(docs/tuned-model.md says how)"
        ) from error
    if not isinstance(loaded, Mapping):
        raise ModelError(f"{path} holds a {type(loaded).__name__}; expected the state_dict of a CLIP model")
    return loaded
