"""Where a model's tokens of the stored texts come from: the stored ones, or its own tokenizer over the texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.packed import Ragged
from paraclip_core.clip.tokenizer import shortened, tokenize

__all__ = ["STORED", "TextTokens", "tokens_for"]

SUFFIX = "_tokens"
Texts: TypeAlias = pa.Array | pa.ChunkedArray


@dataclass(frozen=True)
class TextTokens:
    """How to get the tokens of a kind of text out of a table."""

    own: bool = False
    """Whether they are made from the texts, instead of being read."""
    convert: Callable[[Texts], Texts] = lambda column: column
    dtype: type[np.integer] = np.uint16

    def columns(self, stored: Sequence[str]) -> list[str]:
        """The columns to read for those that hold CLIP's tokens."""
        return [column.removesuffix(SUFFIX) for column in stored] if self.own else list(stored)


STORED = TextTokens()
"""CLIP's tokens as they are stored."""


def tokens_for(clip: ClipModel, stored_length: int) -> TextTokens:
    """The stored tokens where they are the model's, cut if its context is shorter; else those of its own tokenizer.

    Args:
        clip: the model.
        stored_length: how long stored texts are at most, see ``data.context_length``.
    """
    if not clip.reads_clip_tokens:
        return TextTokens(True, lambda texts: _lists(tokenize(clip, texts.to_pylist()), clip), clip.token_dtype)
    if clip.context_length < stored_length:
        return TextTokens(convert=lambda lists: _lists(shortened(Ragged.from_arrow(lists), clip.context_length), clip))
    return STORED


def _lists(tokens: Ragged, clip: ClipModel) -> pa.ListArray:
    values = pa.array(np.asarray(tokens.values, clip.token_dtype))
    return pa.ListArray.from_arrays(pa.array(tokens.offsets.astype(np.int32)), values)
