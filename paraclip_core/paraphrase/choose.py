"""The most faithful of the answers to one request that passes every gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from paraclip_core.config import GateOptions
from paraclip_core.paraphrase.flood import FloodCounter
from paraclip_core.paraphrase.gates import REASONS, Pair, Pieces, first_failure
from paraclip_core.paraphrase.lexicon import content_words, words
from paraclip_core.paraphrase.parse import parse_answer

__all__ = ["Chooser", "Encoder", "Request", "Verdict"]

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
        self._flood = FloodCounter()

    def choose(self, requests: Sequence[Request]) -> list[Verdict]:
        """A verdict for each request, in order.

        The choice among answers is max(cosine − 0.3 · overlap of the content words), answers of at most 1.3 times the
        input's words and one before longer ones, the first of equals. Preset `paper` takes the first answer that is
        not empty.
        """
        candidates = [self._candidates(row, request) for row, request in enumerate(requests)]
        scores = self._similarities([c for some in candidates for c in some if c.failure is None])
        return [self._verdict(request, some, scores) for request, some in zip(requests, candidates, strict=True)]

    def _candidates(self, row: int, request: Request) -> list[_Candidate]:
        found = []
        for answer in dict.fromkeys(parse_answer(raw) for raw in request.answers):
            pair = Pair(
                request.caption, request.source, answer, self._step, self._examples, self.pieces, self._context_length
            )
            found.append(_Candidate(row, pair, first_failure(pair, self._options)))
        return found

    def _similarities(self, candidates: Sequence[_Candidate]) -> Callable[[str, str], float] | None:
        if self.encoder is None or not candidates:
            return None
        wanted = {text for c in candidates for text in (c.pair.caption, c.pair.source, c.pair.answer)}
        for candidate in candidates:
            if candidate.pair.unknown_words:
                wanted.update(candidate.pair.unknown_words, _given_words(candidate.pair))
        texts = sorted(wanted)
        row = {text: number for number, text in enumerate(texts)}
        vectors = self.encoder.encode(texts)
        return lambda one, two: round(float(np.dot(vectors[row[one]], vectors[row[two]])), DECIMALS)

    def _verdict(
        self, request: Request, candidates: list[_Candidate], cosine: Callable[[str, str], float] | None
    ) -> Verdict:
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
                    self._flood.add(_spoken(answer), request.source)
                return verdict
            count = f"the same answer for {self._options.max_repeats} other inputs"
            failed.append((REASONS.index("repeated_flood"), Verdict(answer, "repeated_flood", count)))
        # The answer that came furthest says most about what to mend; max takes the first of equals.
        return max(failed, key=lambda item: item[0])[1]

    def _judge(
        self, candidate: _Candidate, cosine: Callable[[str, str], float] | None
    ) -> tuple[Verdict, tuple[bool, float]]:
        pair, options = candidate.pair, self._options
        if candidate.failure is not None:
            return Verdict(pair.answer, *candidate.failure), (False, 0.0)
        if cosine is None:
            return Verdict(pair.answer), (True, 0.0)
        to_source, to_caption = cosine(pair.source, pair.answer), cosine(pair.caption, pair.answer)
        if to_source < options.min_similarity:
            detail = f"cosine {to_source:.2f} with its input, at least {options.min_similarity:g}"
            return Verdict(pair.answer, "low_similarity", detail, to_caption), (False, 0.0)
        if self._step == 2 and to_caption < options.min_caption_similarity:
            detail = f"cosine {to_caption:.2f} with the caption, at least {options.min_caption_similarity:g}"
            return Verdict(pair.answer, "low_caption_similarity", detail, to_caption), (False, 0.0)
        for word in pair.unknown_words:
            nearest = max((cosine(word, given) for given in _given_words(pair)), default=0.0)
            if nearest < options.min_word_similarity:
                detail = f"{word!r} has cosine {nearest:.2f} with the nearest word of the input, at least "
                detail += f"{options.min_word_similarity:g} is wanted"
                return Verdict(pair.answer, "invented_word", detail, to_caption), (False, 0.0)
        short = len(pair.answer_words) <= GOOD_LENGTH * len(pair.source_words) + 1
        score = min(to_source, to_caption) - OVERLAP_WEIGHT * pair.content_overlap
        return Verdict(pair.answer, similarity=to_caption), (short, score)

    def _flooded(self, answer: str) -> bool:
        if self._options.preset == "paper":
            return False
        return self._flood.count(_spoken(answer)) >= self._options.max_repeats


def _given_words(pair: Pair) -> list[str]:
    return sorted(set(content_words([*pair.source_words, *words(pair.caption)])))


def _spoken(answer: str) -> str:
    return " ".join(words(answer))
