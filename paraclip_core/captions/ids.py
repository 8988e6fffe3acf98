"""Ids of captions and 64-bit keys of captions and images, many at once."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from paraclip_core.captions.seen import Keys

__all__ = ["caption_ids", "id_keys", "text_keys"]

_LENGTHS = [n.to_bytes(8, "little") for n in range(8192)]


def caption_ids(image_ids: list[str | None], texts: list[str]) -> list[bytes]:
    """`tables.text_hash(image_id, caption)` of each row, with its length prefixes looked up."""
    nothing = _LENGTHS[1] + b"\xff"
    ids = []
    for image, text in zip(image_ids, texts, strict=True):
        raw = text.encode()
        head = nothing if image is None else _with_length(image.encode())
        ids.append(blake2b(head + _with_length(raw), digest_size=16).digest())
    return ids


def _with_length(raw: bytes) -> bytes:
    return (_LENGTHS[len(raw)] if len(raw) < len(_LENGTHS) else len(raw).to_bytes(8, "little")) + raw


def id_keys(ids: Sequence[bytes]) -> Keys:
    """The first eight bytes of each id. Two of ten million captions share them with probability 3e-6."""
    return np.frombuffer(b"".join(ids), dtype="<u8")[::2].astype(np.uint64)


def text_keys(texts: Sequence[str], salt: str = "") -> Keys:
    """A 64-bit key of each text, uint64 [n]; other keys under another salt."""
    head = salt.encode() + b"\0"
    raw = b"".join(blake2b(head + text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(raw, dtype="<u8").astype(np.uint64)
