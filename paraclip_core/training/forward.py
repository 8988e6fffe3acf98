"""From a batch of rows to embeddings and to the keys by which false negatives are found."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from paraclip_core.clip.encode import Precision, encode_ragged
from paraclip_core.clip.models import ClipModel
from paraclip_core.clip.ragged import Ragged
from paraclip_core.errors import TrainingError
from paraclip_core.training.losses import IMAGE
from paraclip_core.training.rows import Batch, token_keys

__all__ = ["batch_keys", "embed_batch", "image_features"]


def embed_batch(
    clip: ClipModel, batch: Batch, features: NDArray[np.float16], precision: Precision = "fp32"
) -> dict[str, Tensor]:
    """Embeddings of a batch: texts through the text tower, images from their stored features.

    All texts go through one call, so that its chunks are tight; texts that several kinds share go through it once.

    Returns:
        float32 [n, d], L2-normalised, for each kind of text and for ``image``.
    """
    unique = list({id(tokens): tokens for tokens in batch.texts.values()}.values())
    place = {id(tokens): number for number, tokens in enumerate(unique)}
    with _attention(clip.device):
        encoded = encode_ragged(clip, Ragged.concatenate(unique), precision=precision)
    parts = encoded.split([len(tokens) for tokens in unique])
    embeddings = {kind: parts[place[id(tokens)]] for kind, tokens in batch.texts.items()}
    embeddings[IMAGE] = image_features(features, batch.image_rows, clip.device)
    return embeddings


def image_features(features: NDArray[np.float16], rows: NDArray[np.int64], device: torch.device) -> Tensor:
    """Stored features of these rows as float32 [n, d], normalised again because fp16 rounded them.

    Raises:
        TrainingError: one of them is not a finite number.
    """
    found = np.asarray(features[rows], np.float32)
    if not np.isfinite(found).all():
        row = rows[~np.isfinite(found).all(axis=1)][0]
        raise TrainingError(
            f"row {row} of the image features is not finite; delete the features artifact and run again"
        )
    return functional.normalize(torch.from_numpy(found).to(device), dim=-1)


def batch_keys(batch: Batch, image_keys: NDArray[np.int64], device: torch.device) -> dict[str, Tensor]:
    """Keys of a batch's texts and images, int64 [n] for each kind; equal keys mean equal texts or images."""
    known: dict[int, Tensor] = {}
    for tokens in batch.texts.values():
        if id(tokens) not in known:
            known[id(tokens)] = _tensor(token_keys(tokens), device)
    keys = {kind: known[id(tokens)] for kind, tokens in batch.texts.items()}
    keys[IMAGE] = _tensor(np.asarray(image_keys[batch.image_rows]), device)
    return keys


def _tensor(values: NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device)


def _attention(device: torch.device) -> AbstractContextManager[Any]:
    # The fused kernel's backward pass takes a CPU three times as long, in bf16 and on texts this short.
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
