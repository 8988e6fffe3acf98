"""Texts and images to unit vectors in the shared space."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import nn

from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.packed import Ragged, alphabetical
from paraclip_core.clip.tokenizer import tokenize
from paraclip_core.clip.towers import TextTower, text_tower
from paraclip_core.errors import InputError, ModelError

Precision = Literal["fp32", "bf16"]


def pick_precision(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """`auto` is bf16 where the device computes in it.

    A CPU without such instructions has bf16 products that take fifty times as long as fp32's.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


CHUNK_TOKENS = 2048


def encode_ragged(
    clip: ClipModel, tokens: Ragged, *, chunk_tokens: int = CHUNK_TOKENS, precision: Precision = "fp32"
) -> torch.Tensor:
    """Encode token lists, with gradients where grad mode is on.

    Equal to the model's own `encode_text` on texts padded to the whole context. A causal tower computes the prefixes
    that texts share once (see :mod:`paraclip_core.clip.packed`). For other towers texts are sorted by length and cut
    into chunks, each padded to its longest text plus the padding that the tower sees.

    Args:
        clip: the model.
        tokens: n token lists by the model's own tokenizer.
        chunk_tokens: tokens that are computed together, padding included; affects speed and rounding.
        precision: `bf16` runs the tower under autocast.

    Returns:
        float32 [n, embed_dim], each row of length 1, in the order of `tokens`, on the model's device.
    """
    if not len(tokens):
        return torch.zeros(0, clip.embed_dim, device=clip.device)
    _check(clip, tokens)
    tower = text_tower(clip)
    with _autocast(clip.device, precision):
        if tower.packed is not None:
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            order, outputs = tower.packed.encode(tokens, clip.context_length, chunk_tokens, dtype)
        else:
            order, outputs = _by_length(clip, tower, tokens, chunk_tokens)
    features = torch.cat([output.float() for output in outputs])
    back = torch.from_numpy(np.argsort(order, kind="stable")).to(clip.device)
    return F.normalize(features, dim=-1).index_select(0, back)


def computed_tokens(clip: ClipModel, tokens: Ragged) -> int:
    """Upper bound of the tokens that encoding these texts computes, padding and repeated prefixes included."""
    tower = text_tower(clip)
    if tower.packed is not None:
        return len(tokens.values)
    lengths = np.sort(tokens.lengths)
    chunks = _chunks(lengths, CHUNK_TOKENS, tower, clip.context_length) if len(lengths) else ()
    return sum(
        (chunk.stop - chunk.start) * tower.width(int(lengths[chunk.stop - 1]), clip.context_length) for chunk in chunks
    )


def shares(clip: ClipModel, tokens: Ragged, count: int) -> list[np.ndarray]:
    """Divide texts into `count` shares of about equal cost: lists of their numbers, in the order of encoding.

    Texts with a common prefix stay together where the tower computes it once.
    """
    if not len(tokens):
        return [np.zeros(0, np.int64)] * count
    if text_tower(clip).packed is None:
        order = np.argsort(tokens.lengths, kind="stable")
        return [order[number::count] for number in range(count)]
    order = alphabetical(tokens)
    until = np.cumsum(tokens.lengths[order])
    return np.split(order, np.searchsorted(until, until[-1] * np.arange(1, count) / count))


def _by_length(
    clip: ClipModel, tower: TextTower, tokens: Ragged, chunk_tokens: int
) -> tuple[np.ndarray, list[torch.Tensor]]:
    order = np.argsort(tokens.lengths, kind="stable")
    outputs = []
    for chunk in _chunks(tokens.lengths[order], chunk_tokens, tower, clip.context_length):
        part = tokens.take(order[chunk])
        width = tower.width(int(part.lengths.max()), clip.context_length)
        outputs.append(tower.forward(torch.from_numpy(part.padded(width, tower.pad)).to(clip.device)))
    return order, outputs


def encode_texts(clip: ClipModel, texts: Sequence[str]) -> np.ndarray:
    """Tokenise and encode texts without gradients: float32 [n, embed_dim], rows of length 1."""
    with torch.inference_mode():
        return encode_ragged(clip, tokenize(clip, texts)).cpu().numpy()


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

    `tower` replaces the model's image tower, see :func:`paraclip_core.clip.featurize.folded`.
    """
    visual: Any = clip.visual if tower is None else tower
    with torch.inference_mode():
        features = _first(visual(pixels.to(clip.device, memory_format=torch.channels_last)))
        return F.normalize(features.float(), dim=-1).half().cpu().numpy()


def _chunks(lengths: np.ndarray, budget: int, tower: TextTower, context: int) -> Iterator[slice]:
    """Cut rising lengths into slices of at most `budget` tokens, padding included (one text at least)."""
    start = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (end + 1 - start) * tower.width(int(lengths[end]), context) > budget:
            yield slice(start, end)
            start = end


def _check(clip: ClipModel, tokens: Ragged) -> None:
    lengths = tokens.lengths
    if int(lengths.max()) > clip.context_length or int(lengths.min()) < 1:
        raise InputError(
            f"a text has {lengths.min()} or {lengths.max()} tokens; {clip.reference} reads 1 to {clip.context_length}"
        )
    size = clip.vocab_size
    highest = int(tokens.values.max(initial=0))
    if size and highest >= size:
        raise ModelError(
            f"token {highest} is outside the vocabulary of {clip.reference} ({size} tokens); "
            "the texts were tokenized for another model"
        )


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def _autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def _batches(items: Iterable[Image.Image], size: int) -> Iterator[list[Image.Image]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
