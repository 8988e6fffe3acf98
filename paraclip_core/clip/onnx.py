"""Writing towers as ONNX: the text tower alone, or both in the layout that Immich reads.

Immich's machine learning loads an open_clip model as ``config.json``, ``textual/`` (``model.onnx``, ``tokenizer.json``,
``tokenizer_config.json``) and ``visual/`` (``model.onnx``, ``preprocess_cfg.json``). It pads and cuts token ids to the
context itself, as int32 in the input `text`, and gives one preprocessed image as `image`
(https://github.com/immich-app/immich, machine-learning/immich_ml/models/clip).
"""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from paraclip_core.clip.export import clip_tokenizer
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.tokenizer import model_tokenizer, save_tokenizer
from paraclip_core.clip.towers import TextTower, text_tower
from paraclip_core.errors import ModelError, one_line

__all__ = ["CLIP_TOKENS", "ONNX_FILE", "ONNX_TEXTS", "save_immich", "save_onnx"]

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

    Raises:
        ModelError: the packages of the extra `export` are absent, or torch cannot export the tower.
        OSError: the folder cannot be written.
    """
    _need_packages()
    folder.mkdir(parents=True, exist_ok=True)
    tower = text_tower(clip)
    shortest = clip.context_length if tower.kind == "padded" else 2 + tower.room
    lengths = (shortest, clip.context_length)
    ids = model_tokenizer(clip)(list(EXAMPLES))
    ids = ids if tower.kind == "padded" else _cut(ids, tower, clip)
    length = {} if lengths[0] == lengths[1] else {1: torch.export.Dim("length", min=lengths[0], max=lengths[1])}
    _export(_Texts(clip.model, tower), ids, folder / ONNX_FILE, ("input_ids", "text_embeds"), length)
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


def save_immich(clip: ClipModel, folder: Path) -> None:
    """Write both towers, tokenizer and configuration as Immich loads them; both give rows of length 1.

    Raises:
        ModelError: the packages of the extra `export` are absent, torch cannot export a tower, or Immich's tokenizer
            gives other tokens than the model's own.
        OSError: the folder cannot be written.
    """
    _need_packages()
    textual, visual = folder / "textual", folder / "visual"
    for each in (textual, visual):
        each.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(clip.model_cfg, indent=2) + "\n", "utf-8")
    (visual / "preprocess_cfg.json").write_text(json.dumps(clip.preprocess_cfg, indent=2) + "\n", "utf-8")
    if clip.reads_clip_tokens:
        clip_tokenizer(clip).save_pretrained(textual)
    else:
        save_tokenizer(clip, textual)
    _check_tokens(clip, textual)
    ids = torch.as_tensor(model_tokenizer(clip)(list(EXAMPLES))).int()
    _export(_Texts(clip.model, text_tower(clip)), ids, textual / "model.onnx", ("text", "text_embeds"), {})
    size = clip.preprocess_cfg["size"]
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.zeros(2, 3, height, width)
    _export(_Images(clip.model), pixels, visual / "model.onnx", ("image", "image_embeds"), {})


def _check_tokens(clip: ClipModel, folder: Path) -> None:
    """See that Immich gets the model's own tokens; padding after the end does not count where the tower is causal."""
    from tokenizers import Tokenizer

    pad = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))["pad_token"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=clip.context_length, pad_token=pad, pad_id=tokenizer.token_to_id(pad))
    tokenizer.enable_truncation(max_length=clip.context_length)
    # A text above the context is cut in the tokenizer's own way, which may drop another model's end token.
    texts = [*EXAMPLES, *(["a long caption, " * clip.context_length] if clip.reads_clip_tokens else [])]
    for text, own in zip(texts, model_tokenizer(clip)(texts).tolist(), strict=True):
        ids = tokenizer.encode(text).ids
        if clip.reads_clip_tokens:
            ids, own = (row[: row.index(max(row)) + 1] for row in (ids, own))
        if ids != own:
            raise ModelError(f"the tokenizer of {clip.reference} gives other tokens in Immich's way: for {text[:40]!r}")


def _need_packages() -> None:
    absent = [name for name in NEEDED if find_spec(name) is None]
    if absent:
        raise ModelError(f"ONNX needs {' and '.join(absent)}; run: pip install 'paraclip[export]'")


class _Images(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.model.encode_image(image).float(), dim=-1)


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


def _export(
    module: nn.Module, example: torch.Tensor, path: Path, names: tuple[str, str], dimensions: dict[int, Any]
) -> None:
    """Write a module of one input and one output, called `names`; the batch and `dimensions` may have any size."""
    shape = {0: torch.export.Dim("batch", min=1), **dimensions}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter about itself
            torch.onnx.export(
                module.eval(),
                (example.to(next(module.parameters()).device),),
                path,
                input_names=[names[0]],
                output_names=[names[1]],
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
