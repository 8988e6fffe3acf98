"""What a training run starts from, as a digest: it must not go on from checkpoints of another base or other data."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from paraclip_core.training.rows import TrainingRows

__all__ = ["data_digest", "weights_digest"]


def weights_digest(model: nn.Module) -> str:
    """Digest of the names, shapes and bytes of all parameters but the image tower's."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        if not name.startswith("visual."):
            value = parameter.detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def data_digest(rows: TrainingRows, image_keys: NDArray[np.int64]) -> str:
    """Digest of which images and captions there are, in which order, and of how many tokens each kind of text has.

    The tokens themselves are most of the data, and not read.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{len(rows)} {[(kind, len(tokens.values)) for kind, tokens in rows.texts.items()]};".encode())
    # Rows that are captions of their own have the digest that they had before a caption could have several.
    starts = () if rows.starts is None else (rows.starts,)
    parts: tuple[NDArray[Any] | None, ...] = (image_keys, rows.image_rows, rows.ids, *starts)
    for part in parts:
        digest.update(f"{None if part is None else part.shape};".encode())
        if part is not None:
            digest.update(np.ascontiguousarray(part).reshape(-1).data)
    return digest.hexdigest()
