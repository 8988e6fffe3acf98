"""Synonyms of single words, requested from a language model to make further answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paraclip_core.paraphrase.engines import SamplingOptions
from paraclip_core.paraphrase.keys import RequestKeys, sampling_json
from paraclip_core.paraphrase.pair import Pieces
from paraclip_core.paraphrase.prompts import PromptTemplate

WORD_STEP = 0
"""The step that word requests are filed under; both steps share their answers."""

Fetch = Callable[[Sequence[str]], Mapping[str, Sequence[str]]]
"""Words → their raw answers; words without an answer are left out."""
Encode = Callable[[Sequence[str]], np.ndarray]
"""Texts → unit vectors, float32 [n, d]."""
SynonymTable = Mapping[str, tuple[str, ...]]
"""Word → words that may replace it, the nearest first."""


@dataclass(frozen=True)
class Words:
    """How synonyms are requested and used; a preset of filters may have it (:mod:`paraclip_core.paraphrase.filters`).

    The functions take a request's source, caption and raw answers, and the step, as (source, caption, answers, step).
    """

    template: PromptTemplate
    """The prompt about a single word."""
    sampling: SamplingOptions
    bases: Callable[[str, str, Sequence[str], int], Sequence[str]]
    """The texts of a request in which words are swapped."""
    find: Callable[[Iterable[str], Fetch, Encode, Pieces | None], SynonymTable]
    """The synonym table for some texts."""
    variants: Callable[[str, str, Sequence[str], int, SynonymTable], Sequence[str]]
    """Further answers to a request, with words swapped by the table."""

    def requests(self, model: str, seed: int) -> RequestKeys:
        """The keys of the requests about single words, which both steps share."""
        sampling = sampling_json(self.sampling)
        return RequestKeys(WORD_STEP, model, self.template.id, self.template.hash, sampling, seed, attempt=0)
