"""Writing the text tower as ONNX."""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.tokenizer import model_tokenizer, save_tokenizer
from paraclip_core.clip.towers import TextTower, text_tower
from paraclip_core.errors import ModelError, one_line

ONNX_FILE = "text_model.onnx"
ONNX_TEXTS = "text_model.json"
CLIP_TOKENS = "CLIP's byte pairs"
NEEDED = ("onnx", "onnxscript")
PROTOBUF_BYTES = 1_900_000_000
EXAMPLES = ("a photo of a dog", "two men on a boat")


def save_onnx(clip: ClipModel, folder: Path) -> None:
    """Write ``text_model.onnx``, and beside it the facts of its input.

    The graph maps `input_ids`, int64 [batch, length], to `text_embeds`, float32 [batch, embed_dim] with rows of length
    1. Texts are padded to the longest of a batch, for towers that see all padding to the model's context.
    """
    _need_packages()
    folder.mkdir(parents=True, exist_ok=True)
    tower = text_tower(clip)
    shortest = clip.context_length if tower.kind == "padded" else 2 + tower.room
    lengths = (shortest, clip.context_length)
    ids = model_tokenizer(clip)(list(EXAMPLES))
    ids = ids if tower.kind == "padded" else _cut(ids, tower, clip)
    length = {} if lengths[0] == lengths[1] else {1: torch.export.Dim("length", min=lengths[0], max=lengths[1])}
    _export(_Texts(clip.model, tower), ids, folder / ONNX_FILE, length)
    facts = {
        "input": "input_ids",
        "output": "text_embeds",
        "context_length": clip.context_length,
        "shortest_length": lengths[0],
        "pad_token_id": tower.pad,
        "padding_after_the_longest": tower.room,
        "tokenizer": CLIP_TOKENS if clip.reads_clip_tokens else "the tokenizer files in this folder",
    }
    (folder / ONNX_TEXTS).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    if clip.model_cfg["text_cfg"].get("hf_tokenizer_name"):
        save_tokenizer(clip, folder)


def _need_packages() -> None:
    absent = [name for name in NEEDED if find_spec(name) is None]
    if absent:
        raise ModelError(f"ONNX needs {' and '.join(absent)}; run: pip install 'paraclip[export]'")


class _Texts(nn.Module):
    def __init__(self, model: nn.Module, tower: TextTower) -> None:
        super().__init__()
        self.model = model  # what the tower's forward reads, so that the exporter finds its weights
        self._tower = tower

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return F.normalize(self._tower.forward(input_ids.long()).float(), dim=-1)


def _cut(ids: Any, tower: TextTower, clip: ClipModel) -> torch.Tensor:
    """Texts cut to their length: an example of the whole context would fix the length in the graph."""
    longest = int((ids != tower.pad).sum(dim=1).max())
    return ids[:, : tower.width(longest + 1, clip.context_length)].contiguous()


def _export(module: nn.Module, example: torch.Tensor, path: Path, dimensions: dict[int, Any]) -> None:
    """Write the tower; the batch and `dimensions` may have any size."""
    shape = {0: torch.export.Dim("batch", min=1), **dimensions}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter about itself
            torch.onnx.export(
                module.eval(),
                (example.to(next(module.parameters()).device),),
                path,
                input_names=["input_ids"],
                output_names=["text_embeds"],
                dynamic_shapes=(shape,),
                dynamo=True,
                # One file, unless it would be larger than protobuf can be.
                external_data=sum(p.numel() * p.element_size() for p in module.parameters()) > PROTOBUF_BYTES,
                verbose=False,
            )
    except OSError:
        raise
    except Exception as error:  # the exporter's many own
        raise ModelError(f"torch cannot export this tower to ONNX: {one_line(error)}") from error
