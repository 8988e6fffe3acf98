"""Texts and images to unit vectors in the shared space."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, Literal

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import TextTransformer, text_global_pool
from PIL import Image
from torch import nn

from paraclip_core.clip.base import ClipModel
from paraclip_core.clip.ragged import Ragged
from paraclip_core.clip.reference import LOCAL
from paraclip_core.errors import InputError, ModelError

__all__ = [
    "Precision",
    "encode_images",
    "encode_pixels",
    "encode_ragged",
    "encode_texts",
    "image_transform",
    "tokenise",
]

Precision = Literal["fp32", "bf16"]

CHUNK_TOKENS = 2048


def encode_ragged(
    clip: ClipModel, tokens: Ragged, *, chunk_tokens: int = CHUNK_TOKENS, precision: Precision = "fp32"
) -> torch.Tensor:
    """Encode token lists, with gradients where grad mode is on.

    Texts are sorted by length and cut into chunks that are padded to their own longest text. For a causal tower this
    is exact: padding comes after the end token, which no earlier token attends to, and the end token's output is the
    text's. Other towers (bidirectional, or of another library) get full padding and their own `encode_text`.

    Args:
        clip: the model.
        tokens: token lists by the model's own tokenizer; n of them.
        chunk_tokens: tokens of a chunk, padding included. Affects speed only (and rounding).
        precision: `bf16` runs the tower under autocast.

    Returns:
        float32 [n, embed_dim], each row of length 1, in the order of `tokens`, on the model's device.

    Raises:
        InputError: a text is longer than the model's context.
        ModelError: a token id is outside the model's vocabulary.
    """
    if not len(tokens):
        return torch.zeros(0, clip.embed_dim, device=clip.device)
    _check(clip, tokens)
    tower = _causal_tower(clip.model)
    order = np.argsort(tokens.lengths, kind="stable")
    outputs = []
    with _autocast(clip.device, precision):
        for chunk in _chunks(tokens.lengths[order], chunk_tokens if tower is not None else None, clip.context_length):
            part = tokens.take(order[chunk])
            if tower is not None:
                outputs.append(_encode_causal(tower, torch.from_numpy(part.padded()).to(clip.device)))
            else:
                ids = part.padded(clip.context_length, _pad_id(clip.model))
                outputs.append(_first(_open_clip(clip).encode_text(torch.from_numpy(ids).to(clip.device))))
    features = torch.cat([output.float() for output in outputs])
    back = torch.from_numpy(np.argsort(order, kind="stable")).to(clip.device)
    return F.normalize(features, dim=-1).index_select(0, back)


def encode_texts(clip: ClipModel, texts: Sequence[str], *, precision: Precision = "fp32") -> np.ndarray:
    """Tokenise and encode texts without gradients: float32 [n, embed_dim], rows of length 1."""
    with torch.inference_mode():
        return encode_ragged(clip, tokenise(clip, texts), precision=precision).cpu().numpy()


def tokenise(clip: ClipModel, texts: Sequence[str]) -> Ragged:
    """Token lists by the model's own tokenizer, cut to its context, padding removed."""
    if not len(texts):
        return Ragged.from_lists([])
    ids = np.asarray(_tokenizer(clip)(list(texts)))
    if clip.reads_clip_tokens:
        # The end token has the highest id of the vocabulary; padding comes after it.
        lengths = ids.argmax(axis=1) + 1
    else:
        pad = _pad_id(clip.model)
        lengths = ids.shape[1] - (ids[:, ::-1] != pad).argmax(axis=1)
    kept = np.arange(ids.shape[1]) < lengths[:, None]
    values = ids[kept].astype(np.uint16 if int(ids.max()) < 65536 else np.int32)
    return Ragged(values, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))


def image_transform(clip: ClipModel) -> Any:
    """The evaluation transform: a PIL RGB image to float32 [3, height, width]."""
    return image_transform_v2(PreprocessCfg(**clip.preprocess_cfg), is_train=False)


def encode_images(clip: ClipModel, images: Iterable[Image.Image], *, batch_size: int = 64) -> np.ndarray:
    """Encode RGB images without gradients: float16 [n, embed_dim], rows of length 1 before rounding."""
    transform = image_transform(clip)
    parts = [np.zeros((0, clip.embed_dim), np.float16)]
    for batch in _batches(images, batch_size):
        parts.append(encode_pixels(clip, torch.stack([transform(image) for image in batch])))
    return np.concatenate(parts)


def encode_pixels(clip: ClipModel, pixels: torch.Tensor, *, tower: nn.Module | None = None) -> np.ndarray:
    """Encode preprocessed images float32 [n, 3, height, width] without gradients: float16 [n, embed_dim].

    `tower` stands in for the model's image tower, see :func:`paraclip_core.clip.fold.folded`.
    """
    visual: Any = clip.visual if tower is None else tower
    with torch.inference_mode():
        features = _first(visual(pixels.to(clip.device, memory_format=torch.channels_last)))
        return F.normalize(features.float(), dim=-1).half().cpu().numpy()


def _causal_tower(model: nn.Module) -> Any:
    """The module whose forward can be cut to short texts exactly; None where the model's own must be used."""
    if isinstance(model, open_clip.CLIP):
        pool, mask = model.text_pool_type, model.attn_mask
        return model if mask is not None and pool in ("argmax", "eos") else None
    text = getattr(model, "text", None)
    exact = (
        isinstance(text, TextTransformer)
        and text.attn_mask is not None
        and text.cls_emb is None
        and not text.use_pad_mask
        and text.pool_type in ("argmax", "eos")
    )
    return text if exact else None


def _encode_causal(tower: Any, ids: torch.Tensor) -> torch.Tensor:
    """open_clip's text forward with positional table and mask cut to the chunk: [n, length] -> [n, embed_dim]."""
    length = ids.shape[1]
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(ids).to(dtype) + tower.positional_embedding[:length].to(dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    pool = getattr(tower, "text_pool_type", None) or tower.pool_type
    eos = getattr(tower, "text_eos_id", None) or getattr(tower, "eos_id", None)
    # The final norm works token by token, so only the pooled token needs it.
    x = tower.ln_final(text_global_pool(x, ids, pool, eos_token_id=eos))
    if tower.text_projection is None:
        return x
    return tower.text_projection(x) if isinstance(tower.text_projection, nn.Linear) else x @ tower.text_projection


def _chunks(lengths: np.ndarray, budget: int | None, context: int) -> Iterator[slice]:
    """Cut rising lengths into slices of at most `budget` tokens, padding included (one text at least)."""
    if budget is None:
        size = max(1, CHUNK_TOKENS // context)
        yield from (slice(start, min(start + size, len(lengths))) for start in range(0, len(lengths), size))
        return
    start = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (end + 1 - start) * int(lengths[end]) > budget:
            yield slice(start, end)
            start = end


def _check(clip: ClipModel, tokens: Ragged) -> None:
    lengths = tokens.lengths
    if int(lengths.max()) > clip.context_length or int(lengths.min()) < 1:
        raise InputError(
            f"a text has {lengths.min()} or {lengths.max()} tokens; {clip.reference} reads 1 to {clip.context_length}"
        )
    size = getattr(clip.model, "vocab_size", 0)
    highest = int(tokens.values.max(initial=0))
    if size and highest >= size:
        raise ModelError(
            f"token {highest} is outside the vocabulary of {clip.reference} ({size} tokens); "
            "the texts were tokenised for another model"
        )


def _pad_id(model: nn.Module) -> int:
    text: Any = getattr(model, "text", model)
    config = getattr(text, "config", None)
    return int(getattr(text, "pad_id", 0) if config is None else config.pad_token_id)


def _open_clip(clip: ClipModel) -> Any:
    return clip.model  # torch types a module's own methods as tensors


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def _autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def _tokenizer(clip: ClipModel) -> Any:
    if clip.reads_clip_tokens:
        return open_clip.SimpleTokenizer(context_length=clip.context_length)
    name = clip.reference if ":" in clip.reference else f"{LOCAL}{clip.reference}"
    if not name.startswith((LOCAL, "hf-hub:")):
        name = name.rpartition(":")[0]
    try:
        return open_clip.get_tokenizer(name)
    except Exception as error:  # the hub client's or tokenizers' own
        raise ModelError(f"cannot load the tokenizer of {clip.reference}: {error}") from error


def _batches(items: Iterable[Image.Image], size: int) -> Iterator[list[Image.Image]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
