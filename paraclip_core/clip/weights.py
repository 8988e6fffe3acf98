"""Weights files of every published format, read without running anything that is in them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from paraclip_core.clip.torchscript import is_torchscript, read_torchscript
from paraclip_core.errors import ModelError, one_line

__all__ = ["read_weights"]

HOLDERS = ("state_dict", "model_state_dict", "model")
"""Where training scripts keep the weights among what else they save; open_clip and LaCLIP: the first."""

NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
"""What OpenAI's archives keep among the tensors."""


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint by their names, without the prefix that data-parallel training gives them.

    Reads safetensors, torch's files (open_clip's and LaCLIP's checkpoints among them; with torch's restricted
    unpickler) and OpenAI's TorchScript archives (see :mod:`paraclip_core.clip.torchscript`).

    Raises:
        ModelError: there is no such file, or it is damaged, or holds anything but tensors and plain values.
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
    elif is_torchscript(path):
        tensors = read_torchscript(path)
    else:
        tensors = _torch_file(path)
    while names := [name for name in HOLDERS if isinstance(tensors.get(name), Mapping)]:
        tensors = tensors[names[0]]
    found = {
        name: value for name, value in tensors.items() if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if found and all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): value for name, value in found.items()}
    found = {name: value for name, value in found.items() if name.rpartition(".")[2] not in NOT_WEIGHTS}
    if not found:
        raise ModelError(f"{path} holds no tensors by name; expected the state_dict of a CLIP model")
    return found


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
            f"({one_line(error)}); fetch it again, or save its state_dict as safetensors where you "
            "trust it"
        ) from error
    if not isinstance(loaded, Mapping):
        raise ModelError(f"{path} holds a {type(loaded).__name__}; expected the state_dict of a CLIP model")
    return loaded
