"""Filter results: a decision on the answers to each request, from their texts and the filters alone.

A filter result depends neither on the other answers in its block nor on their order. So neither the split into blocks
(`tables.ANSWERS`) nor the number of processes changes a byte of the filter results (`tables.FILTER_RESULTS`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from operator import attrgetter
from typing import Any

import pyarrow as pa

from paraclip_core.captions.pieces import pieces_of
from paraclip_core.options import meaning
from paraclip_core.paraphrase.filter_options import FilterOptions
from paraclip_core.paraphrase.filters import NO_PARAPHRASE, extra_filters_source, filters_of
from paraclip_core.paraphrase.pair import Pair, Pieces
from paraclip_core.paraphrase.parse import parse_answer
from paraclip_core.paraphrase.sentence_encoder import Compare, Encoder, SentenceEncoder, model_identity
from paraclip_core.tables import FILTER_RESULTS

FILTERS_VERSION = "cf2e1b7f0b5dd968555bfdc0ac85c5f2"
"""Version of the package's own filters: raise it if a filter result may change, and everything is filtered again."""
OVERLAP_WEIGHT = 0.3
GOOD_LENGTH = 1.3
UNSCORED = (True, 0.0)

Further = Callable[[str, str, Sequence[str], int], Sequence[str]]
"""Makes further answers for a request, from its source, its caption, the raw answers and the step."""


@dataclass(frozen=True)
class FilterSpec:
    """Everything that a process needs to filter; plain data."""

    filters: FilterOptions
    """With the preset resolved."""
    step: int
    examples: tuple[tuple[str, str], ...] = ()
    """The prompt's examples as (user, assistant)."""
    context_length: int = 77
    """Context length of the text encoder, in tokens."""
    words: str = ""
    """Model, seed and prompt of the requests for single words; empty if no answers with swapped words are tried."""

    @property
    def digest(self) -> bytes:
        """16 bytes over everything but the texts that decides a filter result: options, models, step, examples and
        code."""
        decides = {
            "options": meaning(self.filters),
            "step": self.step,
            "examples": list(map(list, self.examples)),
            "context": self.context_length,
            "synonyms": self.words,
            "encoder": model_identity(self.filters.encoder) if filters_of(self.filters).meaning else "",
            "code": FILTERS_VERSION,
        }
        digest = hashlib.blake2b(json.dumps(decides, sort_keys=True).encode("utf-8", "surrogatepass"), digest_size=16)
        for source in extra_filters_source(self.filters).values():
            digest.update(hashlib.blake2b(source, digest_size=16).digest())
        return digest.digest()


@dataclass(frozen=True)
class Request:
    """A caption and the text to paraphrase, with the raw answers."""

    caption: str
    source: str
    """The caption at step 1, paraphrase 1 at step 2."""
    answers: Sequence[str]


@dataclass
class Candidate:
    """A parsed answer on its way through the filters."""

    pair: Pair
    results: dict[str, str | None] = field(default_factory=dict)
    """Reason code → None if the answer passes, or why it does not, in the order of the filters. An answer without a
    word reaches no other filter."""
    similarity: float | None = None
    """Cosine of caption and answer, None without a sentence encoder."""
    score: tuple[bool, float] = UNSCORED
    """How good an accepted answer is: whether it is short, then how near and how new."""

    @property
    def answer(self) -> str:
        return self.pair.answer

    @property
    def failure(self) -> tuple[str, str] | None:
        """Reason code and detail of the first filter that the answer fails; None if it passes all so far."""
        return next(((reason, detail) for reason, detail in self.results.items() if detail is not None), None)

    @property
    def accepted(self) -> bool:
        return self.failure is None


@dataclass(frozen=True)
class FilterResult:
    """The answers that passed, or why none passed."""

    accepted: tuple[tuple[str, float | None], ...] = ()
    """Parsed answers, best first, each with its cosine with the caption (None without a sentence encoder)."""
    answer: str | None = None
    """If none passed: the parsed answer that passed the most filters; None if there was none."""
    reason: str | None = None
    """Code of the filter that stopped it, None if an answer passed."""
    detail: str = ""
    similarity: float | None = None
    """Cosine of caption and rejected answer, None if it was not computed."""


class AnswerFilter:
    """Applies the filters of one step."""

    def __init__(self, spec: FilterSpec, encoder: Encoder | None = None, pieces: Pieces | None = None) -> None:
        """Filter with these models; :meth:`with_models` uses those that the options name.

        Without `encoder`, all answers pass the filters on meaning, and none is better than another. Without `pieces`,
        they pass those on CLIP tokens.
        """
        self._spec, self._options, self._filters = spec, spec.filters, filters_of(spec.filters)
        self.encoder, self.pieces = encoder, pieces

    @classmethod
    def with_models(cls, spec: FilterSpec) -> AnswerFilter:
        """An `AnswerFilter` with the models that the options name; they are loaded by the first answer."""
        options = spec.filters
        device = "cpu" if options.device == "auto" else options.device
        return cls(
            spec,
            SentenceEncoder(options.encoder, device) if filters_of(options).meaning else None,
            pieces_of,
        )

    def filter(self, requests: Sequence[Request], further: Further | None = None) -> list[FilterResult]:
        """A filter result for each request, in order; `further` makes more answers to choose from.

        Answers that pass are ranked: those with at most 1.3 times the input's words plus one come first, each group by
        the lower cosine (with input and caption) − 0.3 · overlap of the content words. The preset `off` keeps their
        order.
        """
        return [self._result(candidates) for candidates in self._examined(requests, further, every=False)]

    def filter_block(self, block: pa.RecordBatch, further: Further | None = None) -> pa.RecordBatch:
        """Filter results (`tables.FILTER_RESULTS`) of a block (`tables.ANSWERS`), in its order."""
        rows = [
            {
                "generation": generation,
                "parent": parent,
                "filters": self._digest,
                "accepted": [{"answer": text, "similarity": similarity} for text, similarity in result.accepted],
                "answer": result.answer,
                "reason": result.reason,
                "detail": result.detail,
                "similarity": result.similarity,
            }
            for generation, parent, result in zip(
                block.column("generation").to_pylist(),
                block.column("parent").to_pylist(),
                self.filter(requests_of(block), further),
                strict=True,
            )
        ]
        return pa.RecordBatch.from_pylist(rows, schema=FILTER_RESULTS)

    def explain(self, requests: Sequence[Request], further: Further | None = None) -> list[list[Candidate]]:
        """Every candidate of each request, in the order of filtering, with the result of every filter."""
        return self._examined(requests, further, every=True)

    def _examined(self, requests: Sequence[Request], further: Further | None, every: bool) -> list[list[Candidate]]:
        """The candidates of each request after the filters: after all of them, or up to the first that each fails."""
        groups = [[Candidate(pair) for pair in self._pairs(request, further)] for request in requests]
        for candidate in chain.from_iterable(groups):
            self._apply(self._filters.text, candidate, every)
        candidates = chain.from_iterable(groups)
        left = [candidate for candidate in candidates if candidate.accepted or (every and candidate.pair.answer_words)]
        if self.encoder is None or not self._filters.meaning:
            return groups
        compare = Compare(self.encoder)
        # All texts at once: the encoder is faster so.
        compare.prepare(text for candidate in left for text in self._filters.compared(candidate.pair))
        for candidate in left:
            candidate.similarity = compare.cosine(candidate.pair.caption, candidate.answer)
            self._apply(self._filters.meaning, candidate, every, compare)
            if candidate.accepted:
                candidate.score = self._score(candidate.pair, candidate.similarity, compare)
        return groups

    def _apply(self, filters: Mapping[str, Any], candidate: Candidate, every: bool, *compare: Compare) -> None:
        for reason, check in filters.items():
            detail = candidate.results[reason] = check(candidate.pair, self._options, *compare)
            if detail is not None and (reason == "empty" or not every):
                return

    def _score(self, pair: Pair, similarity: float, compare: Compare) -> tuple[bool, float]:
        if self._options.preset == "off":
            return UNSCORED
        short = len(pair.answer_words) <= GOOD_LENGTH * len(pair.source_words) + 1
        nearness = min(compare.cosine(pair.source, pair.answer), similarity)
        return short, nearness - OVERLAP_WEIGHT * pair.content_overlap

    @cached_property
    def _digest(self) -> bytes:
        return self._spec.digest

    def _pairs(self, request: Request, further: Further | None) -> list[Pair]:
        """The parsed answers, each once, followed by the further ones."""
        spec, raw = self._spec, list(request.answers)
        if further is not None:
            raw += further(request.source, request.caption, raw, spec.step)
        pair = Pair(request.caption, request.source, "", spec.step, spec.examples, self.pieces, spec.context_length)
        return [replace(pair, answer=answer) for answer in dict.fromkeys(map(parse_answer, raw))]

    def _result(self, candidates: Sequence[Candidate]) -> FilterResult:
        if not candidates:
            return FilterResult((), None, NO_PARAPHRASE, "the engine has none for this text")
        passed = [candidate for candidate in candidates if candidate.accepted]
        if passed:
            passed.sort(key=attrgetter("score"), reverse=True)
            return FilterResult(tuple((candidate.answer, candidate.similarity) for candidate in passed))
        # The answer that passed the most filters says most about what to change; max takes the first of equals.
        furthest = max(candidates, key=lambda candidate: len(candidate.results))
        assert furthest.failure is not None
        return FilterResult((), furthest.answer, *furthest.failure, furthest.similarity)


def requests_of(block: pa.RecordBatch) -> list[Request]:
    """The requests of a block (`tables.ANSWERS`), in its order."""
    return list(map(Request, *(block.column(name).to_pylist() for name in ("caption", "source", "completions"))))
