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

from paraclip_core.clip.base import ClipModel
from paraclip_core.clip.prefixes import alphabetical, forest_of, runs
from paraclip_core.clip.ragged import Ragged
from paraclip_core.clip.tokenizer import tokenise
from paraclip_core.clip.towers import PackedTower, TextTower, text_tower
from paraclip_core.errors import InputError, ModelError

__all__ = [
    "Precision",
    "computed_tokens",
    "encode_images",
    "encode_pixels",
    "encode_ragged",
    "encode_texts",
    "image_transform",
    "shares",
    "tokenise",
]

Precision = Literal["fp32", "bf16"]

CHUNK_TOKENS = 2048


def encode_ragged(
    clip: ClipModel, tokens: Ragged, *, chunk_tokens: int = CHUNK_TOKENS, precision: Precision = "fp32"
) -> torch.Tensor:
    """Encode token lists, with gradients where grad mode is on.

    The result is that of the model's own `encode_text` on texts padded to the whole context. Texts of a causal tower
    are sorted by their tokens, and what neighbours begin with is computed once (see :mod:`paraclip_core.clip.packed`).
    Those of other towers are sorted by length and cut into chunks that are padded to their own longest text, plus what
    the tower needs to see of the padding (see :mod:`paraclip_core.clip.towers`).

    Args:
        clip: the model.
        tokens: token lists by the model's own tokenizer; n of them.
        chunk_tokens: tokens that are computed together, padding included. Affects speed only (and rounding).
        precision: `bf16` runs the tower under autocast.

    Returns:
        float32 [n, embed_dim], each row of length 1, in the order of `tokens`, on the model's device.

    Raises:
        InputError: a text is longer than the model's context.
        ModelError: a token id is outside the model's vocabulary, or the tower gives no single vector for a text.
    """
    if not len(tokens):
        return torch.zeros(0, clip.embed_dim, device=clip.device)
    _check(clip, tokens)
    tower = text_tower(clip)
    with _autocast(clip.device, precision):
        if tower.packed is not None:
            order, outputs = _packed(
                tower.packed, tower.packed.cut(tokens, clip.context_length), chunk_tokens, precision
            )
        else:
            order, outputs = _by_length(clip, tower, tokens, chunk_tokens)
    features = torch.cat([output.float() for output in outputs])
    back = torch.from_numpy(np.argsort(order, kind="stable")).to(clip.device)
    return F.normalize(features, dim=-1).index_select(0, back)


def computed_tokens(clip: ClipModel, tokens: Ragged) -> int:
    """Tokens that encoding these texts computes at most, padding included; beginnings that texts share count each."""
    tower = text_tower(clip)
    if tower.packed is not None:
        return len(tokens.values)
    lengths = np.sort(tokens.lengths)
    chunks = _chunks(lengths, CHUNK_TOKENS, tower, clip.context_length) if len(lengths) else ()
    return sum(
        (chunk.stop - chunk.start) * tower.width(int(lengths[chunk.stop - 1]), clip.context_length) for chunk in chunks
    )


def shares(clip: ClipModel, tokens: Ragged, count: int) -> list[np.ndarray]:
    """Deal texts out so that each share costs about the same: `count` lists of their numbers, in the order of encoding.

    Texts that begin alike stay together where the tower computes a common beginning once.
    """
    if not len(tokens):
        return [np.zeros(0, np.int64)] * count
    if text_tower(clip).packed is None:
        order = np.argsort(tokens.lengths, kind="stable")
        return [order[number::count] for number in range(count)]
    order = alphabetical(tokens)
    until = np.cumsum(tokens.lengths[order])
    return np.split(order, np.searchsorted(until, until[-1] * np.arange(1, count) / count))


def _packed(
    tower: PackedTower, texts: Ragged, chunk_tokens: int, precision: Precision
) -> tuple[np.ndarray, list[torch.Tensor]]:
    order = alphabetical(texts)
    texts = texts.take(order)
    transformer = tower.transformer(torch.bfloat16 if precision == "bf16" else torch.float32)
    forests = (forest_of(texts.take(np.arange(run.start, run.stop))) for run in runs(texts, chunk_tokens))
    return order, [tower.forward(transformer, forest) for forest in forests]


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
        return encode_ragged(clip, tokenise(clip, texts)).cpu().numpy()


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
            "the texts were tokenised for another model"
        )


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def _autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def _batches(items: Iterable[Image.Image], size: int) -> Iterator[list[Image.Image]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
