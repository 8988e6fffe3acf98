"""The filters on texts, applied to one pair."""

from __future__ import annotations

from paraclip_core.paraphrase.filter_options import FilterOptions
from paraclip_core.paraphrase.filters import filters_of
from paraclip_core.paraphrase.pair import Pair


def first_failure(pair: Pair, options: FilterOptions) -> tuple[str, str] | None:
    """Reason code and detail of the first filter on texts that the answer fails."""
    results = ((reason, check(pair, options)) for reason, check in filters_of(options).text.items())
    return next(((reason, detail) for reason, detail in results if detail is not None), None)
