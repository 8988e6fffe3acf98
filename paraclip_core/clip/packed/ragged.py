"""Token lists of different lengths in one flat array, as they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from paraclip_core.errors import InputError


@dataclass(frozen=True)
class Ragged:
    """Token lists back to back: list `i` is ``values[offsets[i]:offsets[i + 1]]``."""

    values: np.ndarray
    """uint16 [tokens]; wider where a tokenizer's vocabulary needs it."""
    offsets: np.ndarray
    """int64 [n + 1], rising from 0."""

    @classmethod
    def from_arrow(cls, lists: pa.ListArray | pa.ChunkedArray) -> Ragged:
        """Token lists of a table's column; slices and several chunks are fine."""
        if isinstance(lists, pa.ChunkedArray):
            chunks = [cls.from_arrow(chunk) for chunk in lists.chunks]
            return cls.concatenate(chunks)
        if lists.null_count:
            row = int(np.flatnonzero(np.asarray(lists.is_null()))[0])
            raise InputError(f"row {row} has no tokens; drop rows whose text is null before packing them")
        offsets = np.asarray(lists.offsets, dtype=np.int64)
        values = np.asarray(lists.values)[offsets[0] : offsets[-1]] if len(offsets) else np.empty(0, np.uint16)
        return cls(values, offsets - offsets[0] if len(offsets) else np.zeros(1, np.int64))

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]], dtype: type[np.integer] = np.uint16) -> Ragged:
        """Token lists given one by one."""
        offsets = np.zeros(len(lists) + 1, np.int64)
        np.cumsum([len(tokens) for tokens in lists], out=offsets[1:])
        values = np.fromiter((token for tokens in lists for token in tokens), dtype, int(offsets[-1]))
        return cls(values, offsets)

    @classmethod
    def concatenate(cls, parts: Sequence[Ragged]) -> Ragged:
        """The lists of all parts, one part after the other."""
        if not parts:
            return cls(np.empty(0, np.uint16), np.zeros(1, np.int64))
        starts = np.cumsum([0, *(len(part.values) for part in parts)])
        offsets = [part.offsets[1:] + start for part, start in zip(parts, starts[:-1], strict=True)]
        return cls(np.concatenate([part.values for part in parts]), np.concatenate([np.zeros(1, np.int64), *offsets]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n]: tokens of each list."""
        return np.diff(self.offsets)

    def take(self, indices: np.ndarray | Sequence[int]) -> Ragged:
        """The lists at `indices`, in that order; an index may come more than once."""
        chosen = np.asarray(indices, dtype=np.int64)
        lengths = self.offsets[chosen + 1] - self.offsets[chosen]
        offsets = np.zeros(len(chosen) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Ragged(self.values[np.repeat(self.offsets[chosen], lengths) + within], offsets)

    def padded(self, length: int | None = None, pad: int = 0) -> np.ndarray:
        """int64 [n, length] with `pad` after each list; `length` is the longest list's where it is not given."""
        lengths = self.lengths
        longest = int(lengths.max(initial=0))
        width = longest if length is None else length
        if longest > width:
            row = int(np.flatnonzero(lengths > width)[0])
            raise InputError(f"text {row} has {lengths[row]} tokens, but the model reads at most {width}")
        out = np.full((len(self), width), pad, np.int64)
        out[np.arange(width) < lengths[:, None]] = self.values
        return out
