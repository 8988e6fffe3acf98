"""Encodes texts and images into unit vectors in the shared space.

How much padding a text encoder must see depends on its kind:

=============================================================  ==========================================
CLIP, EVA-02, MobileCLIP-B, worldwide CLIP (causal)             none: it comes after the pooled token
RoBERTa, XLM-RoBERTa, mT5, NLLB (Hugging Face)                  none: the attention mask hides it
SigLIP, CLIPA, MobileCLIP-S, CoCa: tokens see the padding       all of it, which is part of the model
=============================================================  ==========================================

A causal encoder of plain blocks computes shared prefixes once; see :mod:`paraclip_core.clip.packed`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip.hf_model import HFTextEncoder
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import TextTransformer, text_global_pool
from PIL import Image
from torch import nn

from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.packed import PackedTextEncoder, packed_text_encoder
from paraclip_core.clip.ragged import Ragged, alphabetical
from paraclip_core.clip.reference import tokenizer_reference
from paraclip_core.errors import ModelError
from paraclip_core.text_safety import one_line

NO_CODE: dict[str, Any] = {"trust_remote_code": False}
"""A folder's configuration could request to run its own code, and by default the user would be asked."""

WHERE_FROM = ("is_local", "local_files_only", "name_or_path")
"""Keys of a tokenizer's configuration in which transformers records where it was loaded from."""


def tokenize(clip: ClipModel, texts: Sequence[str]) -> Ragged:
    """Token lists from the model's tokenizer, truncated to its context, without padding; uint16, or int32 if needed."""
    if not len(texts):
        return Ragged.from_lists([])
    ids = np.asarray(model_tokenizer(clip)(list(texts)))
    if clip.reads_clip_tokens:
        # The end token has the highest id of CLIP's vocabulary; padding comes after it.
        lengths = ids.argmax(axis=1) + 1
    else:
        # An end token that doubles as padding, such as SigLIP's, is removed and restored with the padding.
        text = ids[:, ::-1] != pad_token(clip)
        lengths = np.where(text.any(axis=1), ids.shape[1] - text.argmax(axis=1), 1)
    inside = np.arange(ids.shape[1]) < lengths[:, None]
    return Ragged(ids[inside].astype(clip.token_dtype), np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))


def pad_token(clip: ClipModel) -> int:
    """The id that pads texts to the model's context."""
    if clip.reads_clip_tokens:
        return 0
    config = getattr(getattr(clip.model, "text", None), "config", None)
    if config is not None:
        # A Hugging Face encoder masks tokens equal to this.
        return int(config.pad_token_id)
    return int(getattr(getattr(model_tokenizer(clip), "tokenizer", None), "pad_token_id", None) or 0)


def model_tokenizer(clip: ClipModel) -> Any:
    """open_clip's callable from texts to padded ids, loaded once per model."""
    if clip.tokenizer is None:
        clip.tokenizer = _load(clip)
    return clip.tokenizer


def save_tokenizer(clip: ClipModel, folder: Path) -> None:
    """Write the model's own tokenizer where open_clip looks for it; its bytes do not depend on earlier use."""
    # A fresh one, because a tokenizer remembers, and would save, the options of its last call.
    _load(clip).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    plain = {name: value for name, value in config.items() if name not in WHERE_FROM}
    path.write_text(json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def _load(clip: ClipModel) -> Any:
    if clip.reads_clip_tokens:
        return open_clip.SimpleTokenizer(context_length=clip.context_length)
    text = clip.model_cfg["text_cfg"]
    source = tokenizer_reference(clip.reference)
    try:
        no_code = NO_CODE if text.get("hf_tokenizer_name") else {}
        return open_clip.get_tokenizer(source, context_length=clip.context_length, **no_code)
    except Exception as error:  # of the hub client or tokenizers
        raise ModelError(
            f"cannot load the tokenizer of {clip.reference}: {one_line(error)}; "
            "put its files next to the weights in a local folder"
        ) from error


@dataclass(frozen=True)
class TextEncoder:
    """How one model encodes texts."""

    forward: Callable[[torch.Tensor], torch.Tensor]
    """int64 [n, length] to [n, embed_dim], normalized or not."""
    pad: int
    """The id that pads shorter texts."""
    padded: bool = False
    """Whether texts must be padded to the full context."""
    packed: PackedTextEncoder | None = None
    """A faster encoder with the same result, if there is one."""

    def widths(self, lengths: NDArray[np.int64], context: int) -> NDArray[np.int64]:
        """Tokens that the encoder computes for each text of these lengths, without padding to a longer neighbor."""
        return np.full_like(lengths, context) if self.padded else lengths


def text_encoder(clip: ClipModel) -> TextEncoder:
    """The text encoder of a model."""
    model: Any = clip.model
    pad = pad_token(clip)
    if isinstance(model, open_clip.CLIP):
        pool, encoder = str(model.text_pool_type), model
    else:
        encoder = getattr(model, "text", None)
        pool = str(getattr(encoder, "pool_type", ""))
    if pool == "none":
        raise ModelError(
            f"the text encoder of {clip.reference} (text_cfg.pool_type none) gives a vector for each token, not "
            "one for the text; choose a model that pools by argmax, eos, first or last"
        )
    if isinstance(encoder, HFTextEncoder):
        return TextEncoder(partial(_own, encoder), pad)
    end = getattr(encoder, "text_eos_id", None) or getattr(encoder, "eos_id", None)
    causal = isinstance(encoder, open_clip.CLIP | TextTransformer) and encoder.attn_mask is not None and pool != "last"
    # An end token that doubles as padding was removed with it, and a class token comes after the padding.
    if causal and getattr(encoder, "cls_emb", None) is None and not (pool == "eos" and end == pad):
        packed = packed_text_encoder(encoder, pool, end, partial(_project, encoder))
        return TextEncoder(partial(_causal, encoder, pool, end), pad, packed=packed)
    return TextEncoder(partial(_own, model.encode_text), pad, padded=True)


def _own(encode: Callable[[torch.Tensor], Any], inputs: torch.Tensor) -> torch.Tensor:
    output = encode(inputs)
    return output[0] if isinstance(output, tuple) else output


def _causal(encoder: Any, pool: str, end: int | None, ids: torch.Tensor) -> torch.Tensor:
    """open_clip's text forward with the positional table and mask cut to the length of the texts."""
    length = ids.shape[1]
    dtype = encoder.transformer.get_cast_dtype()
    x = encoder.token_embedding(ids).to(dtype) + encoder.positional_embedding[:length].to(dtype)
    x = encoder.transformer(x, attn_mask=encoder.attn_mask[:length, :length])
    # The final norm works token by token, so only the pooled token needs it.
    return _project(encoder, encoder.ln_final(text_global_pool(x, ids, pool, eos_token_id=end)))


def _project(encoder: Any, x: torch.Tensor) -> torch.Tensor:
    if encoder.text_projection is None:
        return x
    return encoder.text_projection(x) if isinstance(encoder.text_projection, nn.Linear) else x @ encoder.text_projection


Precision = Literal["fp32", "bf16"]


def pick_precision(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """`auto` is bf16 if the device has instructions for it.

    On a CPU without them, bf16 products take fifty times as long as fp32.
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
    """Encode token lists, with gradients if grad mode is on: float32 [n, embed_dim], rows of length 1.

    Equal to the model's own `encode_text` on texts padded to the full context. At most `chunk_tokens` tokens are
    computed together, which affects speed and rounding. Encoders that are not packed get texts sorted by length, each
    chunk padded to its longest text. `bf16` runs the encoder under autocast.
    """
    if not len(tokens):
        return torch.zeros(0, clip.embed_dim, device=clip.device)
    highest = int(tokens.values.max(initial=0))
    if clip.vocab_size and highest >= clip.vocab_size:
        raise ModelError(
            f"token {highest} is outside the vocabulary of {clip.reference} ({clip.vocab_size} tokens); "
            "the texts were tokenized for another model"
        )
    encoder = text_encoder(clip)
    low = precision == "bf16"
    with torch.autocast(clip.device.type, dtype=torch.bfloat16) if low else nullcontext():
        if encoder.packed is not None:
            order, outputs = encoder.packed.encode(tokens, chunk_tokens, torch.bfloat16 if low else torch.float32)
        else:
            order, outputs = _by_length(clip, encoder, tokens, chunk_tokens)
    features = torch.cat([output.float() for output in outputs])
    back = torch.from_numpy(np.argsort(order, kind="stable")).to(clip.device)
    return F.normalize(features, dim=-1).index_select(0, back)


def encoding_order(clip: ClipModel, tokens: Ragged) -> NDArray[np.int64]:
    """Indices of the texts in encoding order: alphabetical if the encoder computes a common prefix once."""
    if text_encoder(clip).packed is None:
        return np.argsort(tokens.lengths, kind="stable")
    return alphabetical(tokens)


def _by_length(
    clip: ClipModel, encoder: TextEncoder, tokens: Ragged, chunk_tokens: int
) -> tuple[NDArray[np.int64], list[torch.Tensor]]:
    order = np.argsort(tokens.lengths, kind="stable")
    widths, outputs = encoder.widths(tokens.lengths[order], clip.context_length), []
    for chunk in _chunks(widths, chunk_tokens):
        part = tokens.take(order[chunk]).padded(int(widths[chunk.stop - 1]), encoder.pad)
        outputs.append(encoder.forward(torch.from_numpy(part).to(clip.device)))
    return order, outputs


def _chunks(widths: NDArray[np.int64], budget: int) -> Iterator[slice]:
    """Cut texts of increasing widths into slices of at most `budget` tokens with padding (at least one text)."""
    start = 0
    for end in range(1, len(widths) + 1):
        if end == len(widths) or (end + 1 - start) * int(widths[end]) > budget:
            yield slice(start, end)
            start = end


def encode_texts(clip: ClipModel, texts: Sequence[str]) -> np.ndarray:
    """Tokenize and encode texts without gradients: float32 [n, embed_dim], rows of length 1."""
    with torch.inference_mode():
        return encode_ragged(clip, tokenize(clip, texts)).cpu().numpy()


def image_transform(clip: ClipModel) -> Any:
    """The evaluation transform: a PIL RGB image to float32 [3, height, width]."""
    return image_transform_v2(PreprocessCfg(**clip.preprocess_cfg), is_train=False)


def encode_images(
    clip: ClipModel, images: Iterable[Image.Image], *, batch_size: int = 64, dtype: torch.dtype = torch.float16
) -> np.ndarray:
    """Encode RGB images without gradients: [n, embed_dim] of `dtype`, rows of length 1 before rounding."""
    transform = image_transform(clip)
    parts = [torch.zeros(0, clip.embed_dim, dtype=dtype).numpy()]
    remaining = iter(images)
    while batch := list(islice(remaining, batch_size)):
        parts.append(encode_pixels(clip, torch.stack([transform(image) for image in batch]), dtype=dtype))
    return np.concatenate(parts)


def encode_pixels(
    clip: ClipModel, pixels: torch.Tensor, *, encoder: nn.Module | None = None, dtype: torch.dtype = torch.float16
) -> np.ndarray:
    """Encode preprocessed images float32 [n, 3, height, width] without gradients: [n, embed_dim] of `dtype`.

    `encoder` replaces the model's image encoder, see :func:`paraclip_core.clip.featurize.folded`.
    """
    visual: Any = clip.visual if encoder is None else encoder
    with torch.inference_mode():
        features = _own(visual, pixels.to(clip.device, memory_format=torch.channels_last))
        return F.normalize(features.float(), dim=-1).to(dtype).cpu().numpy()
