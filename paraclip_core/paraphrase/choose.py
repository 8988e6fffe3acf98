"""The most faithful of the answers to one request that passes every gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from paraclip_core.config import GateOptions
from paraclip_core.paraphrase.flood import FloodCounter
from paraclip_core.paraphrase.gates import REASONS, first_failure
from paraclip_core.paraphrase.lexicon import words
from paraclip_core.paraphrase.meaning import MEANING_GATES, Cosine, compared_texts
from paraclip_core.paraphrase.pair import Pair, Pieces
from paraclip_core.paraphrase.parse import parse_answer

__all__ = ["NOT_JUDGED", "Chooser", "Encoder", "Request", "Verdict"]

NOT_JUDGED = "not_judged"
"""In place of a reason, where nobody judged."""
OVERLAP_WEIGHT = 0.3
GOOD_LENGTH = 1.3
# Sums in another order differ in the last bits; rounding keeps them out of decisions and files.
DECIMALS = 4


class Encoder(Protocol):
    """Something that turns texts into unit vectors."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 [n, d], L2-normalised."""
        ...


@dataclass(frozen=True)
class Request:
    """What was asked for one caption, with the raw answers."""

    caption: str
    source: str
    answers: Sequence[str]


@dataclass(frozen=True)
class Verdict:
    """The answer that was kept, or why none was."""

    answer: str | None
    """The parsed answer: the kept one, or else the one that came furthest; None where there was none."""
    reason: str | None = None
    """Code of the gate that stopped it, None where it was kept."""
    detail: str = ""
    similarity: float | None = None
    """Cosine of caption and answer, None without a sentence encoder."""


@dataclass(frozen=True)
class _Candidate:
    row: int
    pair: Pair
    failure: tuple[str, str] | None


class Chooser:
    """Applies the gates of one step; keeps the counts behind `repeated_flood` between calls."""

    def __init__(
        self,
        options: GateOptions,
        step: int,
        *,
        encoder: Encoder | None = None,
        examples: Sequence[tuple[str, str]] = (),
        pieces: Pieces | None = None,
        context_length: int = 77,
    ) -> None:
        """Judge answers of `step`; `encoder` is asked only where the preset has gates on similarity."""
        self._options, self._step, self._examples = options, step, examples
        self.encoder = encoder if options.preset != "paper" else None
        """The sentence encoder, None where the preset has no gates on similarity."""
        self.pieces = pieces
        """Number of CLIP tokens of a text."""
        self._context_length = context_length
        self.known: Mapping[str, Verdict] = {}
        """Verdicts of an earlier pass by the text of their request (step 1 alone), for who only counts requests."""
        self.blind = False
        """Judge nothing: every verdict is `NOT_JUDGED`, for who only counts requests."""
        self.flood = FloodCounter()
        """The counts behind `repeated_flood`."""

    def choose(self, requests: Sequence[Request]) -> list[Verdict]:
        """A verdict for each request, in order.

        The choice among answers is max(cosine − 0.3 · overlap of the content words), answers of at most 1.3 times the
        input's words and one before longer ones, the first of equals. Preset `paper` takes the first answer that is
        not empty.
        """
        if self.blind:
            return [Verdict(None, NOT_JUDGED) for _ in requests]
        if self.known:
            before = [self._again(request) for request in requests]
            fresh = iter(self._choose([request for request in requests if request.source not in self.known]))
            return [verdict or next(fresh) for verdict in before]
        return self._choose(requests)

    def _again(self, request: Request) -> Verdict | None:
        verdict = self.known.get(request.source)
        if verdict is not None and verdict.reason is None and self._options.preset != "paper":
            self.flood.add(_spoken(verdict.answer or ""), request.source)
        return verdict

    def _choose(self, requests: Sequence[Request]) -> list[Verdict]:
        if self._options.preset == "paper":
            return [self._first(request) for request in requests]
        candidates = [self._candidates(row, request) for row, request in enumerate(requests)]
        scores = self._similarities([c for some in candidates for c in some if c.failure is None])
        return [self._verdict(request, some, scores) for request, some in zip(requests, candidates, strict=True)]

    def _first(self, request: Request) -> Verdict:
        """The first answer that holds a word; that is all that this preset asks for, so nothing else is computed."""
        for raw in request.answers:
            answer = parse_answer(raw)
            if words(answer):
                return Verdict(answer)
        return self._verdict(request, self._candidates(0, request), None)

    def _candidates(self, row: int, request: Request) -> list[_Candidate]:
        found = []
        for answer in dict.fromkeys(parse_answer(raw) for raw in request.answers):
            pair = Pair(
                request.caption, request.source, answer, self._step, self._examples, self.pieces, self._context_length
            )
            found.append(_Candidate(row, pair, first_failure(pair, self._options)))
        return found

    def _similarities(self, candidates: Sequence[_Candidate]) -> Cosine | None:
        if self.encoder is None or not candidates:
            return None
        texts = sorted({text for candidate in candidates for text in compared_texts(candidate.pair)})
        row = {text: number for number, text in enumerate(texts)}
        vectors = self.encoder.encode(texts)
        return lambda one, two: round(float(np.dot(vectors[row[one]], vectors[row[two]])), DECIMALS)

    def _verdict(self, request: Request, candidates: list[_Candidate], cosine: Cosine | None) -> Verdict:
        if not candidates:
            return Verdict(None, "no_paraphrase", "the engine has none for this text")
        passed: list[tuple[tuple[bool, float], Verdict]] = []
        failed: list[tuple[int, Verdict]] = []
        for candidate in candidates:
            verdict, score = self._judge(candidate, cosine)
            if verdict.reason is None:
                passed.append((score, verdict))
            else:
                failed.append((REASONS.index(verdict.reason), verdict))
        for _, verdict in sorted(passed, key=lambda item: item[0], reverse=True):
            answer = verdict.answer or ""
            if not self._flooded(answer):
                if self._options.preset != "paper":
                    self.flood.add(_spoken(answer), request.source)
                return verdict
            count = f"the same answer for {self._options.max_repeats} other inputs"
            failed.append((REASONS.index("repeated_flood"), Verdict(answer, "repeated_flood", count)))
        # The answer that came furthest says most about what to mend; max takes the first of equals.
        return max(failed, key=lambda item: item[0])[1]

    def _judge(self, candidate: _Candidate, cosine: Cosine | None) -> tuple[Verdict, tuple[bool, float]]:
        pair, options = candidate.pair, self._options
        if candidate.failure is not None:
            return Verdict(pair.answer, *candidate.failure), (False, 0.0)
        if cosine is None:
            return Verdict(pair.answer), (True, 0.0)
        to_source, to_caption = cosine(pair.source, pair.answer), cosine(pair.caption, pair.answer)
        for reason, gate in MEANING_GATES.items():
            detail = gate(pair, options, cosine)
            if detail is not None:
                return Verdict(pair.answer, reason, detail, to_caption), (False, 0.0)
        short = len(pair.answer_words) <= GOOD_LENGTH * len(pair.source_words) + 1
        score = min(to_source, to_caption) - OVERLAP_WEIGHT * pair.content_overlap
        return Verdict(pair.answer, similarity=to_caption), (short, score)

    def _flooded(self, answer: str) -> bool:
        if self._options.preset == "paper":
            return False
        return self.flood.count(_spoken(answer)) >= self._options.max_repeats


def _spoken(answer: str) -> str:
    return " ".join(words(answer))
