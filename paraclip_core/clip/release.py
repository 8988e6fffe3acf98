"""Writing a model as a folder that stock open_clip loads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from safetensors import SafetensorError
from safetensors.torch import save_file

from paraclip_core.clip.base import ClipModel
from paraclip_core.clip.reference import CONFIG, LOCAL, WEIGHTS
from paraclip_core.errors import ModelError

__all__ = ["save_release"]


def save_release(clip: ClipModel, folder: Path, card: str) -> None:
    """Write weights, configuration and model card, so that ``local-dir:FOLDER`` loads in open_clip.

    The same model gives the same bytes. Each file appears whole, the weights last.

    Args:
        clip: the model; it is written in fp32.
        folder: made if need be.
        card: the README.md, see :func:`paraclip_core.training.card.model_card`.

    Raises:
        ModelError: a weight is not finite, or the weights cannot be written (safetensors hides the OSError).
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
    _save_tokenizer(clip, folder)
    temporary = folder / f".{WEIGHTS[0]}.tmp"
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
    except SafetensorError as error:
        raise ModelError(
            f"cannot write {folder / WEIGHTS[0]}: {error}; free some space or choose another root and run again"
        ) from error
    temporary.replace(folder / WEIGHTS[0])


def _save_tokenizer(clip: ClipModel, folder: Path) -> None:
    """A tokenizer of its own lies beside the weights, where open_clip looks for it."""
    if not clip.model_cfg["text_cfg"].get("hf_tokenizer_name"):
        return
    source = clip.reference if ":" in clip.reference else f"{LOCAL}{clip.reference}"
    if not source.startswith((LOCAL, "hf-hub:")):
        source = source.rpartition(":")[0]
    tokenizer: Any = open_clip.get_tokenizer(source)
    if isinstance(tokenizer, HFTokenizer):
        tokenizer.save_pretrained(folder)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
