"""Texts as CLIP reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from open_clip.tokenizer import SimpleTokenizer

from paraclip_core.clip.ragged import Ragged

TOKENIZER = SimpleTokenizer()


def clip_tokens(texts: Sequence[str], length: int = 77) -> Ragged:
    """The tokens that open_clip's tokenizer makes of texts, truncated to `length`, without padding."""
    ids = TOKENIZER(list(texts), length).numpy().astype(np.uint16)
    return Ragged.from_lists([row[: row.argmax() + 1].tolist() for row in ids])
