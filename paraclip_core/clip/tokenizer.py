"""A model's own tokenizer: CLIP's byte pairs, or one that comes with the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip

from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.packed import Ragged
from paraclip_core.clip.reference import tokenizer_reference
from paraclip_core.errors import ModelError, one_line

NO_CODE: dict[str, Any] = {"trust_remote_code": False}
"""A folder's configuration could ask to run its own code, and a prompt would ask the user."""

WHERE_FROM = ("is_local", "local_files_only", "name_or_path")
"""Keys of a tokenizer's configuration in which transformers notes where it was loaded from."""


def tokenize(clip: ClipModel, texts: Sequence[str]) -> Ragged:
    """Token lists by the model's own tokenizer, cut to its context, padding removed; uint16, or int32 if need be."""
    if not len(texts):
        return Ragged.from_lists([])
    ids = np.asarray(model_tokenizer(clip)(list(texts)))
    if clip.reads_clip_tokens:
        # The end token has the highest id of CLIP's vocabulary; padding comes after it.
        lengths = ids.argmax(axis=1) + 1
    else:
        # An end token that pads as well, as SigLIP's does, goes with the padding and comes back with it.
        text = ids[:, ::-1] != pad_token(clip)
        lengths = np.where(text.any(axis=1), ids.shape[1] - text.argmax(axis=1), 1)
    inside = np.arange(ids.shape[1]) < lengths[:, None]
    return Ragged(ids[inside].astype(clip.token_dtype), np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))


def shortened(tokens: Ragged, length: int) -> Ragged:
    """Lists of CLIP's tokens cut to `length` as its tokenizer cuts texts: the end token comes last all the same."""
    lengths = np.minimum(tokens.lengths, length)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    values = np.array(tokens.values[np.repeat(tokens.offsets[:-1], lengths) + within])
    cut = tokens.lengths > length
    values[offsets[1:][cut] - 1] = tokens.values[tokens.offsets[1:][cut] - 1]
    return Ragged(values, offsets)


def pad_token(clip: ClipModel) -> int:
    """The id that fills texts up to the model's context."""
    if clip.reads_clip_tokens:
        return 0
    config = getattr(getattr(clip.model, "text", None), "config", None)
    if config is not None:
        # A Hugging Face tower masks what equals this.
        return int(config.pad_token_id)
    return int(getattr(getattr(model_tokenizer(clip), "tokenizer", None), "pad_token_id", None) or 0)


def model_tokenizer(clip: ClipModel) -> Any:
    """open_clip's callable from texts to padded ids, loaded once for each model."""
    if clip.tokenizer is None:
        clip.tokenizer = _load(clip)
    return clip.tokenizer


def save_tokenizer(clip: ClipModel, folder: Path) -> None:
    """Write a tokenizer that comes with the model where open_clip looks for it: the same bytes however it was used."""
    # A fresh one, because a tokenizer keeps, and would save, how it was called last.
    _load(clip).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    plain = {name: value for name, value in config.items() if name not in WHERE_FROM}
    path.write_text(json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def _load(clip: ClipModel) -> Any:
    if clip.reads_clip_tokens:
        return open_clip.SimpleTokenizer(context_length=clip.context_length)
    text = clip.model_cfg["text_cfg"]
    source = tokenizer_reference(clip.reference)
    try:
        no_code = NO_CODE if text.get("hf_tokenizer_name") else {}
        return open_clip.get_tokenizer(source, context_length=clip.context_length, **no_code)
    except Exception as error:  # the hub client's or tokenizers' own
        raise ModelError(
            f"cannot load the tokenizer of {clip.reference}: {one_line(error)}; "
            "put its files beside the weights in a local folder"
        ) from error
