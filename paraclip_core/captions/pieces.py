"""How many of CLIP's tokens a text has, counted by open_clip's own tokenizer."""

from __future__ import annotations

from functools import cache
from typing import Any

CONTEXT_LENGTH = 77
"""Number of tokens that CLIP reads, start and end included."""


def pieces_of(text: str) -> int:
    """Number of CLIP's tokens of a text, without start and end."""
    return len(_tokenizer().encode(text))


@cache
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer  # loads torch, and few texts are counted

    return SimpleTokenizer()
