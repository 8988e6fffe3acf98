"""Writing a model as a folder that stock open_clip loads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder

from paraclip_core.clip.base import ClipModel
from paraclip_core.clip.reference import CONFIG, TEXT_CONFIG, WEIGHTS
from paraclip_core.clip.tokenizer import save_tokenizer
from paraclip_core.errors import ModelError
from paraclip_core.tensor_file import write_tensors

__all__ = ["save_release"]


def save_release(clip: ClipModel, folder: Path, card: str) -> None:
    """Write weights, configuration and model card, so that ``local-dir:FOLDER`` loads in open_clip.

    The same model gives the same bytes. Each file appears whole, the weights last.

    Args:
        clip: the model; it is written in fp32.
        folder: made if need be.
        card: the README.md, see :func:`paraclip_core.training.card.model_card`.

    Raises:
        ModelError: a weight is not finite, or the weights cannot be written.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in sorted(clip.model.state_dict().items()):
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{name} holds values that are not finite; the model in {folder} is not written")
        # A copy, because safetensors refuses tensors that share memory.
        tensors[name] = tensor.detach().cpu().contiguous().clone()
    config = {"model_cfg": clip.model_cfg, "preprocess_cfg": clip.preprocess_cfg}
    _replace(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True).encode() + b"\n")
    _replace(folder / "README.md", card.encode())
    _save_text_files(clip, folder)
    try:
        write_tensors(tensors, folder / WEIGHTS[0], {"format": "pt"})
    except OSError as error:
        raise ModelError(
            f"cannot write {folder / WEIGHTS[0]}: {error}; free some space or choose another root and run again"
        ) from error


def _save_text_files(clip: ClipModel, folder: Path) -> None:
    """A tokenizer of its own lies beside the weights, where open_clip looks for it, and a Hugging Face text tower's
    configuration does too, because open_clip keeps only its name."""
    text: Any = getattr(clip.model, "text", None)
    if isinstance(text, HFTextEncoder):
        stored: Any = text.config
        config: dict[str, Any] = dict(stored.to_dict())
        config.pop("_name_or_path", None)  # says where it was loaded from, not what it is
        _replace(folder / TEXT_CONFIG, json.dumps(config, indent=2, sort_keys=True).encode() + b"\n")
    if clip.model_cfg["text_cfg"].get("hf_tokenizer_name"):
        save_tokenizer(clip, folder)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
