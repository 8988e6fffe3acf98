"""The padding that each kind of text tower needs to see, and its forward pass on texts without the rest.

============  ==========================================================  =======================================
kind          examples                                                    padding
============  ==========================================================  =======================================
``causal``    CLIP, EVA-02, MobileCLIP-B, worldwide CLIP                   none: it comes after the pooled token
``cls``       CoCa                                                        one token: its class token looks at it
``masked``    RoBERTa, XLM-RoBERTa, mT5, NLLB (Hugging Face)              none: the attention mask hides it
``padded``    SigLIP, CLIPA, MobileCLIP-S: every token sees the padding   all of it, which is part of the model
============  ==========================================================  =======================================

A causal tower of plain blocks computes shared prefixes once, see :mod:`paraclip_core.clip.packed`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import TextTransformer, text_global_pool
from torch import nn

from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.packed import PackedTower, packed_tower
from paraclip_core.clip.tokenizer import pad_token
from paraclip_core.errors import ModelError

Kind = Literal["causal", "cls", "masked", "padded"]


@dataclass(frozen=True)
class TextTower:
    """How to encode texts with one model."""

    kind: Kind
    forward: Callable[[torch.Tensor], torch.Tensor]
    """int64 [n, length] to [n, embed_dim], normalized or not."""
    pad: int
    """The id that fills shorter texts up."""
    room: int = 0
    """Padding that the longest text needs all the same, where the context has room for it."""
    packed: PackedTower | None = None
    """A faster way with the same result, where there is one."""

    def width(self, longest: int, context: int) -> int:
        """Tokens that texts are padded to, the longest of them having `longest`."""
        return context if self.kind == "padded" else min(longest + self.room, context)

    def widths(self, lengths: NDArray[np.int64], context: int) -> NDArray[np.int64]:
        """Tokens that the tower computes for each text of these lengths, apart from a longer neighbor's padding."""
        if self.packed is not None:
            return lengths
        return np.full_like(lengths, context) if self.kind == "padded" else np.minimum(lengths + self.room, context)


def text_tower(clip: ClipModel) -> TextTower:
    """The text tower of a model."""
    model: Any = clip.model
    pad = pad_token(clip)
    if isinstance(model, open_clip.CLIP):
        pool, tower = str(model.text_pool_type), model
    else:
        tower = getattr(model, "text", None)
        pool = str(getattr(tower, "pool_type", ""))
    if pool == "none":
        raise ModelError(
            f"the text tower of {clip.reference} (text_cfg.pool_type none) gives a vector for each token and none for "
            "the text; choose a model that pools by argmax, eos, first or last"
        )
    if isinstance(tower, HFTextEncoder):
        return TextTower("masked", partial(_own, tower), pad)
    if isinstance(tower, TextTransformer) and tower.cls_emb is not None:
        exact = pad == tower.pad_id
        return TextTower("cls", partial(_with_class_token, tower), pad, 1) if exact else _padded(model, pad)
    if isinstance(tower, open_clip.CLIP | TextTransformer) and tower.attn_mask is not None and pool != "last":
        end = getattr(tower, "text_eos_id", None) or getattr(tower, "eos_id", None)
        # An end token that pads as well was taken off with the padding.
        room = int(pool == "eos" and end == pad)
        packed = packed_tower(tower, pool, end, pad, room, partial(_project, tower))
        return TextTower("causal", partial(_causal, tower, pool, end), pad, room, packed)
    return _padded(model, pad)


def _padded(model: Any, pad: int) -> TextTower:
    return TextTower("padded", partial(_own, model.encode_text), pad)


def _own(encode: Callable[[torch.Tensor], Any], ids: torch.Tensor) -> torch.Tensor:
    output = encode(ids)
    return output[0] if isinstance(output, tuple) else output


def _causal(tower: Any, pool: str, end: int | None, ids: torch.Tensor) -> torch.Tensor:
    """open_clip's text forward with positional table and mask cut to the texts."""
    length = ids.shape[1]
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(ids).to(dtype) + tower.positional_embedding[:length].to(dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    # The final norm works token by token, so only the pooled token needs it.
    return _project(tower, tower.ln_final(text_global_pool(x, ids, pool, eos_token_id=end)))


def _with_class_token(tower: Any, ids: torch.Tensor) -> torch.Tensor:
    """CoCa's text forward, with the class token at the position that it has after the whole context.

    The published weights were trained with a mask that is off by one: the class token looks at the first padding token
    instead of itself. So one padding token stays, and only those after it can go.
    """
    length = ids.shape[1]
    dtype = tower.transformer.get_cast_dtype()
    x = torch.cat([tower.token_embedding(ids).to(dtype), tower.cls_emb.to(dtype).expand(ids.shape[0], 1, -1)], dim=1)
    positions = torch.cat([tower.positional_embedding[:length], tower.positional_embedding[-1:]])
    mask = tower._build_additive_mask(ids, length + 1, x.dtype)
    if tower.attn_mask is not None:
        mask = mask + tower.attn_mask[: length + 1, : length + 1]
    x = tower.transformer(x + positions.to(dtype), attn_mask=mask)
    return _project(tower, tower.ln_final(x[:, -1]))


def _project(tower: Any, x: torch.Tensor) -> torch.Tensor:
    if tower.text_projection is None:
        return x
    return tower.text_projection(x) if isinstance(tower.text_projection, nn.Linear) else x @ tower.text_projection
