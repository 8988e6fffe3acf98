"""Filter results: a decision on the answers to each request, from their texts and the filters alone.

A filter result depends neither on the other answers in its block nor on their order. So neither the split into blocks
(`tables.ANSWERS`) nor the number of processes changes a byte of the filter results (`tables.FILTER_RESULTS`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from operator import attrgetter

import pyarrow as pa

from paraclip_core.options import meaning
from paraclip_core.paraphrase.filter_options import FilterOptions
from paraclip_core.paraphrase.filters import NO_PARAPHRASE, compared_texts, extra_filters_source, filters_of
from paraclip_core.paraphrase.pair import Pair
from paraclip_core.paraphrase.parse import parse_answer
from paraclip_core.paraphrase.sentence_encoder import Compare, Encoder, SentenceEncoder, model_identity
from paraclip_core.tables import FILTER_RESULTS

FILTERS_VERSION = "fdd45d7e85105c941ccda81a333b5e90"
"""Version of the package's own filters: raise it if a filter result may change, and everything is filtered again."""
OVERLAP_WEIGHT = 0.3
GOOD_LENGTH = 1.3
UNSCORED = (True, 0.0)


@dataclass(frozen=True)
class FilterSpec:
    """Everything that a process needs to filter; plain data."""

    filters: FilterOptions
    """With the preset resolved."""
    step: int

    @property
    def digest(self) -> bytes:
        """16 bytes over everything but the texts that decides a filter result: options, models, step and code."""
        decides = {
            "options": meaning(self.filters),
            "step": self.step,
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
    passed: int = 0
    """Filters that it passed."""
    failure: tuple[str, str] | None = None
    """Reason code and detail of the first filter that it fails; None if it passes all so far."""
    similarity: float | None = None
    """Cosine of caption and answer, None without a sentence encoder."""
    score: tuple[bool, float] = UNSCORED
    """How good an accepted answer is: whether it is short, then how near and how new."""

    def apply(self, filters: Mapping[str, Callable[..., str | None]], *more: object) -> None:
        """Examine the answer with these filters, up to the first that it fails."""
        for reason, check in filters.items():
            if (detail := check(self.pair, *more)) is not None:
                self.failure = reason, detail
                return
            self.passed += 1


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

    def __init__(self, spec: FilterSpec, encoder: Encoder | None = None) -> None:
        """Filter with this encoder, or with the one that the options name, which the first answer loads."""
        self._spec, self._options, self._filters = spec, spec.filters, filters_of(spec.filters)
        device = "cpu" if spec.filters.device == "auto" else spec.filters.device
        self._encoder = encoder or SentenceEncoder(spec.filters.encoder, device)

    def filter(self, requests: Sequence[Request]) -> list[FilterResult]:
        """A filter result for each request, in order.

        Answers that pass are ranked: those with at most 1.3 times the input's words plus one come first, each group by
        the lower cosine (with input and caption) − 0.3 · overlap of the content words. The preset `off` keeps their
        order.
        """
        groups = [self._candidates(request) for request in requests]
        for candidate in chain.from_iterable(groups):
            candidate.apply(self._filters.text, self._options)
        if self._filters.meaning:
            self._compare([candidate for candidate in chain.from_iterable(groups) if candidate.failure is None])
        return list(map(_result, groups))

    def filter_block(self, block: pa.RecordBatch) -> pa.RecordBatch:
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
                self.filter(_requests_of(block)),
                strict=True,
            )
        ]
        return pa.RecordBatch.from_pylist(rows, schema=FILTER_RESULTS)

    def _compare(self, candidates: Sequence[Candidate]) -> None:
        """Apply the filters on meaning, and score what passes them."""
        compare = Compare(self._encoder)
        # All texts at once: the encoder is faster so.
        compare.prepare(text for candidate in candidates for text in compared_texts(candidate.pair))
        for candidate in candidates:
            candidate.similarity = compare.cosine(candidate.pair.caption, candidate.pair.answer)
            candidate.apply(self._filters.meaning, self._options, compare)
            if candidate.failure is None:
                candidate.score = self._score(candidate.pair, candidate.similarity, compare)

    def _score(self, pair: Pair, similarity: float, compare: Compare) -> tuple[bool, float]:
        if self._options.preset == "off":
            return UNSCORED
        short = len(pair.answer_words) <= GOOD_LENGTH * len(pair.source_words) + 1
        nearness = min(compare.cosine(pair.source, pair.answer), similarity)
        return short, nearness - OVERLAP_WEIGHT * pair.content_overlap

    @cached_property
    def _digest(self) -> bytes:
        return self._spec.digest

    def _candidates(self, request: Request) -> list[Candidate]:
        """The parsed answers, each once."""
        pair = Pair(request.caption, request.source, "", self._spec.step)
        return [Candidate(replace(pair, answer=answer)) for answer in dict.fromkeys(map(parse_answer, request.answers))]


def _result(candidates: Sequence[Candidate]) -> FilterResult:
    if not candidates:
        return FilterResult((), None, NO_PARAPHRASE, "the engine has none for this text")
    accepted = [candidate for candidate in candidates if candidate.failure is None]
    if accepted:
        accepted.sort(key=attrgetter("score"), reverse=True)
        return FilterResult(tuple((candidate.pair.answer, candidate.similarity) for candidate in accepted))
    # The answer that passed the most filters says most about what to change; max takes the first of equals.
    furthest = max(candidates, key=attrgetter("passed"))
    assert furthest.failure is not None
    return FilterResult((), furthest.pair.answer, *furthest.failure, furthest.similarity)


def _requests_of(block: pa.RecordBatch) -> list[Request]:
    """The requests of a block (`tables.ANSWERS`), in its order."""
    return list(map(Request, *(block.column(name).to_pylist() for name in ("caption", "source", "completions"))))
