"""Judge: a verdict for each request, from its texts and the gates alone.

Verdicts depend neither on what is judged beside a request nor on the order, so any number of processes may share them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from paraclip_core.captions.tokens import Tokenizer
from paraclip_core.config import GateOptions, meaning
from paraclip_core.paraphrase.gates import Gates, extra_gates_source, first_failure, gates_of
from paraclip_core.paraphrase.meaning import Compare, Encoder, Nli, NliModel, SentenceEncoder, model_identity
from paraclip_core.paraphrase.pair import Pair, Pieces
from paraclip_core.paraphrase.parse import parse_answer
from paraclip_core.paraphrase.small_model.synonyms import variants

__all__ = ["Accepted", "Candidate", "Judge", "Request", "Verdict", "gates_digest", "make_judge"]

OVERLAP_WEIGHT = 0.3
GOOD_LENGTH = 1.3
CODE = (
    *(f"paraphrase/{name}.py" for name in ("capable", "gates", "judge", "meaning", "pair", "parse", "prompts")),
    "paraphrase/small_model/*.py",
    *(f"captions/{name}.py" for name in ("clean", "tokens")),
)
"""The code that a verdict depends on, in the package's folder."""


@dataclass(frozen=True)
class Request:
    """What was asked for one caption, with the raw answers."""

    caption: str
    source: str
    """The caption at step 1, paraphrase 1 at step 2."""
    answers: Sequence[str]


@dataclass(frozen=True)
class Accepted:
    """A parsed answer that passed every gate."""

    answer: str
    similarity: float | None
    """Cosine of caption and answer, None without a sentence encoder."""


@dataclass(frozen=True)
class Verdict:
    """The answers that passed, or why none did."""

    accepted: tuple[Accepted, ...] = ()
    """Best first."""
    answer: str | None = None
    """Where none passed: the parsed answer that came furthest; None where there was none."""
    reason: str | None = None
    """Code of the gate that stopped it, None where an answer passed."""
    detail: str = ""
    similarity: float | None = None
    """Cosine of caption and rejected answer, None where nobody asked."""


@dataclass(frozen=True)
class Candidate:
    """A parsed answer with what each gate says of it."""

    answer: str
    results: Mapping[str, str | None]
    """Reason code → None where it passes, or why it does not, in the order in which the gates are asked. Of an answer
    without a word nothing else is asked."""
    similarity: float | None
    """Cosine of caption and answer, None without a sentence encoder."""

    @property
    def accepted(self) -> bool:
        """Whether it passes every gate."""
        return all(detail is None for detail in self.results.values())


@dataclass(frozen=True)
class _Judged:
    """One candidate: passed, or stopped for a reason."""

    answer: str
    similarity: float | None = None
    score: tuple[bool, float] = (True, 0.0)
    reason: str | None = None
    detail: str = ""


class Judge:
    """Applies the gates of one step."""

    def __init__(
        self,
        options: GateOptions,
        step: int,
        *,
        encoder: Encoder | None = None,
        nli: Nli | None = None,
        examples: Sequence[tuple[str, str]] = (),
        pieces: Pieces | None = None,
        context_length: int = 77,
        synonyms: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        """Judge answers of `step`.

        Args:
            options: with the preset resolved.
            step: 1 or 2.
            encoder: asked by gates on meaning and for the order of the answers; without it all pass those gates.
            nli: asked where the options name one.
            examples: the prompt's, as (user, assistant).
            pieces: number of CLIP tokens of a text.
            context_length: of the text tower.
            synonyms: word → other words, which are tried as further answers.
        """
        self._options, self._step = options, step
        self._gates: Gates = gates_of(options)
        self._encoder, self._nli = encoder, nli
        self._pair = Pair("", "", "", step, tuple(examples), pieces, context_length)
        self._synonyms = synonyms

    def judge(self, requests: Sequence[Request]) -> list[Verdict]:
        """A verdict for each request, in order.

        Of the answers that pass, those of at most 1.3 times the input's words and one come first, each by the lower
        cosine (with input and caption) − 0.3 · overlap of the content words. Preset `off` leaves them as they came.
        """
        candidates = [self._candidates(request) for request in requests]
        failures = [[first_failure(pair, self._options, self._gates) for pair in some] for some in candidates]
        passing = [
            pair
            for pairs, results in zip(candidates, failures, strict=True)
            for pair, failure in zip(pairs, results, strict=True)
            if failure is None
        ]
        compare = self._comparing(passing)
        verdicts = []
        for pairs, results in zip(candidates, failures, strict=True):
            judged = [
                self._by_meaning(pair, compare)
                if failure is None
                else _Judged(pair.answer, None, (False, 0.0), *failure)
                for pair, failure in zip(pairs, results, strict=True)
            ]
            verdicts.append(self._verdict(judged))
        return verdicts

    def explain(self, requests: Sequence[Request]) -> list[list[Candidate]]:
        """Every candidate of each request, in the order in which they are judged, with the result of every gate."""
        candidates = [self._candidates(request) for request in requests]
        compare = self._comparing([pair for pairs in candidates for pair in pairs if pair.answer_words])
        return [[self._explained(pair, compare) for pair in pairs] for pairs in candidates]

    def _explained(self, pair: Pair, compare: Compare | None) -> Candidate:
        if detail := self._gates.text["empty"](pair, self._options):
            return Candidate(pair.answer, {"empty": detail}, None)
        results = {reason: gate(pair, self._options) for reason, gate in self._gates.text.items()}
        if compare is None:
            return Candidate(pair.answer, results, None)
        results |= {reason: gate(pair, self._options, compare) for reason, gate in self._gates.meaning.items()}
        return Candidate(pair.answer, results, compare.cosine(pair.caption, pair.answer))

    def _candidates(self, request: Request) -> list[Pair]:
        raw = list(request.answers)
        if self._synonyms is not None:
            raw += variants(request.source, request.caption, raw, self._step, self._synonyms)
        answers = dict.fromkeys(map(parse_answer, raw))
        return [replace(self._pair, caption=request.caption, source=request.source, answer=a) for a in answers]

    def _comparing(self, pairs: Sequence[Pair]) -> Compare | None:
        """What compares the texts of these pairs, all of them prepared at once; None without an encoder."""
        if self._encoder is None or not self._gates.meaning:
            return None
        compare = Compare(self._encoder, self._nli)
        both_ways = (
            [texts for pair in pairs for texts in ((pair.caption, pair.answer), (pair.answer, pair.caption))]
            if self._nli
            else []
        )
        compare.prepare((text for pair in pairs for text in self._gates.compared(pair)), both_ways)
        return compare

    def _by_meaning(self, pair: Pair, compare: Compare | None) -> _Judged:
        if compare is None:
            return _Judged(pair.answer)
        to_source, to_caption = compare.cosine(pair.source, pair.answer), compare.cosine(pair.caption, pair.answer)
        for reason, gate in self._gates.meaning.items():
            detail = gate(pair, self._options, compare)
            if detail is not None:
                return _Judged(pair.answer, to_caption, (False, 0.0), reason, detail)
        if self._options.preset == "off":
            return _Judged(pair.answer, to_caption)
        short = len(pair.answer_words) <= GOOD_LENGTH * len(pair.source_words) + 1
        score = min(to_source, to_caption) - OVERLAP_WEIGHT * pair.content_overlap
        return _Judged(pair.answer, to_caption, (short, score))

    def _verdict(self, judged: Sequence[_Judged]) -> Verdict:
        if not judged:
            return Verdict((), None, "no_paraphrase", "the engine has none for this text")
        passed = sorted((one for one in judged if one.reason is None), key=lambda one: one.score, reverse=True)
        if passed:
            return Verdict(tuple(Accepted(one.answer, one.similarity) for one in passed))
        # The answer that came furthest says most about what to mend; max takes the first of equals.
        furthest = max(judged, key=lambda one: self._gates.rank(one.reason or ""))
        return Verdict((), furthest.answer, furthest.reason, furthest.detail, furthest.similarity)


def make_judge(
    options: GateOptions,
    step: int,
    examples: Sequence[tuple[str, str]] = (),
    context_length: int = 77,
    synonyms: Mapping[str, tuple[str, ...]] | None = None,
    device: str = "cpu",
) -> Judge:
    """The judge of some options with its models, which the first answer loads.

    Args:
        options: with the preset resolved.
        step: 1 or 2.
        examples: the prompt's, as (user, assistant).
        context_length: of the text tower.
        synonyms: word → other words, which are tried as further answers.
        device: where models compute if `options.device` is `auto`.
    """
    place = device if options.device == "auto" else options.device
    whole = Tokenizer(context_length=4096)
    return Judge(
        options,
        step,
        encoder=SentenceEncoder(options.encoder, place) if gates_of(options).meaning else None,
        nli=NliModel(options.nli, place) if options.nli else None,
        examples=examples,
        pieces=lambda text: len(whole.encode(text)) - 2,
        context_length=context_length,
        synonyms=synonyms,
    )


def gates_digest(
    options: GateOptions,
    step: int,
    examples: Sequence[tuple[str, str]],
    context_length: int,
    synonyms_of: str = "",
) -> bytes:
    """16 bytes over all that decides a verdict besides the texts: options, models, step, examples and code.

    Args:
        options: with the preset resolved.
        step: 1 or 2.
        examples: the prompt's, as (user, assistant).
        context_length: of the text tower.
        synonyms_of: what names the requests for single words, where synonyms are tried.

    Raises:
        ConfigError: one of the user's own gates cannot be imported.
        EngineError: the sentence encoder's package is not installed.
    """
    gates = gates_of(options)
    decides = {
        # Floods are decided over all verdicts, later.
        "options": {name: value for name, value in meaning(options).items() if name != "max_repeats"},
        "step": step,
        "examples": list(map(list, examples)),
        "context": context_length,
        "synonyms": synonyms_of,
        "encoder": model_identity(options.encoder) if gates.meaning else "",
        "nli": model_identity(options.nli) if options.nli else "",
        "code": code_digest(),
    }
    digest = hashlib.blake2b(json.dumps(decides, sort_keys=True).encode("utf-8", "surrogatepass"), digest_size=16)
    for source in extra_gates_source(options).values():
        digest.update(hashlib.blake2b(source, digest_size=16).digest())
    return digest.digest()


@cache
def code_digest() -> str:
    """A hash of the code that judges, so that no verdict of another release's gates is taken for this one's."""
    package, digest = Path(__file__).parents[1], hashlib.blake2b(digest_size=16)
    for path in (path for pattern in CODE for path in sorted(package.glob(pattern))):
        digest.update(f"{path.name}:".encode() + path.read_bytes())
    return digest.hexdigest()
