"""Filters for tests, named by dotted paths in `paraphrase.filters.extra`."""

from __future__ import annotations

from paraclip_core.paraphrase.filter_options import FilterOptions
from paraclip_core.paraphrase.pair import Pair


def blue_input(pair: Pair, options: FilterOptions) -> str | None:
    """The input mentions something blue."""
    return "it is blue" if "blue" in pair.source else None


def short(pair: Pair, options: FilterOptions) -> str | None:
    """The answer has fewer than three words."""
    count = len(pair.answer_words)
    return f"{count} words" if count < 3 else None


def never(pair: Pair, options: FilterOptions) -> str | None:
    """Nothing is good enough."""
    return "not good enough"


def copy(pair: Pair, options: FilterOptions) -> str | None:
    """The answer is its input."""
    return "the same" if pair.answer_words == pair.source_words else None
