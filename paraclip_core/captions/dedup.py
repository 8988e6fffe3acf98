"""De-duplication: ids of captions, 64-bit keys of captions and images, and the set that says which of them are new."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

__all__ = ["KeySet", "Keys", "caption_ids", "id_keys", "text_keys"]

Keys = npt.NDArray[np.uint64]

_PARTS_BITS = 4
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


class KeySet:
    """Keys in sorted runs, which are merged when the newer one has grown to half of the older.

    The key space is cut into 16 parts by the top bits, so that a merge copies a sixteenth of the keys at most: ten
    million keys need 80 MB and 10 MB more at the peak. Keys must be spread evenly, as hashes are.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._parts: list[list[Keys]] = [[] for _ in range(1 << _PARTS_BITS)]
        self._count = 0

    def __len__(self) -> int:
        """Number of different keys."""
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes that the keys take."""
        return sum(run.nbytes for part in self._parts for run in part)

    def add(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Add keys (uint64, [n]); returns bool [n], True where a key comes for the first time, within `keys` too."""
        unique, first = np.unique(keys, return_index=True)
        fresh = ~self._members(unique)
        self._insert(unique[fresh])
        new = np.zeros(len(keys), dtype=np.bool_)
        new[first[fresh]] = True
        return new

    def contains(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """bool [n], True where a key is in the set."""
        unique, inverse = np.unique(keys, return_inverse=True)
        return self._members(unique)[inverse]

    def _members(self, unique: Keys) -> npt.NDArray[np.bool_]:
        members = np.zeros(len(unique), dtype=np.bool_)
        for part, piece in enumerate(_pieces(unique)):
            wanted = unique[piece]
            for run in self._parts[part]:
                places = np.searchsorted(run, wanted)
                np.minimum(places, len(run) - 1, out=places)
                members[piece] |= run[places] == wanted
        return members

    def _insert(self, fresh: Keys) -> None:
        self._count += len(fresh)
        for part, piece in enumerate(_pieces(fresh)):
            if piece.start == piece.stop:
                continue
            runs = self._parts[part]
            runs.append(fresh[piece].copy())
            while len(runs) > 1 and 2 * len(runs[-1]) >= len(runs[-2]):
                newer, older = runs.pop(), runs.pop()
                merged = np.concatenate([older, newer])
                merged.sort()
                runs.append(merged)


def _pieces(unique: Keys) -> list[slice]:
    """Where each part's keys lie among sorted keys."""
    parts = 1 << _PARTS_BITS
    starts = np.arange(1, parts, dtype=np.uint64) << np.uint64(64 - _PARTS_BITS)
    edges = [0, *np.searchsorted(unique, starts).tolist(), len(unique)]
    return [slice(edges[n], edges[n + 1]) for n in range(parts)]
