"""A few captions on both steps, with everything that a run would do to them open to view."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from paraclip.storage.artifacts import ArtifactStore
from paraclip.storage.cache_tools import paid_tokens
from paraclip.storage.generations import GenerationStore
from paraclip.storage.roots import open_generations
from paraclip.tasks.run.run import Run
from paraclip_core.captions.clean import clean, cleaned
from paraclip_core.captions.tokens import CONTEXT_LENGTH
from paraclip_core.config import SamplingOptions
from paraclip_core.demo.synonyms import THESAURUS, WORD_SAMPLING, bases, find_synonyms
from paraclip_core.errors import ConfigError
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.engines.base import CheckedEngine, Engine, PaidEngine
from paraclip_core.paraphrase.gates import gates_of
from paraclip_core.paraphrase.generate import Counts, RequestSender
from paraclip_core.paraphrase.judge import Candidate, Judge, JudgeSpec, Request, Verdict
from paraclip_core.paraphrase.parse import parse_answer
from paraclip_core.paraphrase.prompts import PromptTemplate, prompt_for
from paraclip_core.paraphrase.requests import RequestKeys, step_requests
from paraclip_core.paraphrase.rounds import judge_spec, word_requests

Say = Callable[[str], None]
Texts = tuple[str, str]
"""A caption, and the text that is asked about."""
Attempts = Mapping[Texts, Sequence["Attempt"]]


@dataclass(frozen=True)
class Attempt:
    """A request and what became of it."""

    step: int
    attempt: int
    """0 for the first time."""
    input: str
    key: str
    """The request's, as hex."""
    cached: bool
    """The root's generation cache has the answers already."""
    answers: tuple[str, ...]
    """As the engine gave them."""
    candidates: tuple[Candidate, ...]
    """What was parsed from them, each text once, and behind them those with words swapped."""
    chosen: tuple[str, ...]
    """The accepted ones that go on, best first."""
    reason: str | None
    """The gate that stopped the one that came furthest; None where one is chosen."""
    detail: str

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        parsed = list(map(parse_answer, self.answers))
        candidates = [
            {**asdict(one), "accepted": one.accepted, "words_swapped": one.answer not in parsed}
            for one in self.candidates
        ]
        answers = [{"raw": raw, "parsed": text} for raw, text in zip(self.answers, parsed, strict=True)]
        return {**asdict(self), "answers": answers, "candidates": candidates}


@dataclass(frozen=True)
class Rewrite:
    """What training would see of a caption."""

    paraphrase_1: str
    paraphrase_2: str | None
    """None where no answer of step 2 is accepted: the row is left out."""


@dataclass(frozen=True)
class CaptionTrial:
    """A caption's way through both steps."""

    caption: str
    """As ingest cleans it."""
    left_out: str
    """Why ingest would leave it out, so that it is not tried; empty where it would not."""
    attempts: tuple[Attempt, ...]
    """Those of step 1, then those of step 2."""
    rewrites: tuple[Rewrite, ...]
    """One, or several where `paraphrase.keep` allows that; none where step 1 has no accepted answer."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "attempts": [attempt.as_json() for attempt in self.attempts]}


@dataclass(frozen=True)
class Trial:
    """Captions with what was asked for them."""

    engine: str
    model: str
    preset: str
    gates: tuple[str, ...]
    """The gates that are asked, in order."""
    captions: tuple[CaptionTrial, ...]
    asked: int
    """Requests that the engine answered now, those for single words included."""
    cached: int
    """Requests that the root's generation cache had answered."""
    prompt_tokens: int
    completion_tokens: int
    spend: float | None
    """What these tokens cost; None without prices."""
    stored: bool
    """Whether the answers are in the root's generation cache now."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "captions": [caption.as_json() for caption in self.captions]}


def try_captions(run: Run, captions: Sequence[str], keep: bool, say: Say) -> Trial:
    """Ask and judge as a run would, whatever it takes of `paraphrase.fraction`.

    Floods and `paraphrase.regenerate` are about many rows, and not tried; nor is `paraphrase.judge` asked.

    Args:
        run: the run; the answers in its generation cache are used.
        captions: raw.
        keep: put the answers into that cache, too. Otherwise nothing of them stays.
        say: told what takes a while.
    """
    with _opened(run, keep, say) as trial:
        return trial.run(captions)


@contextmanager
def _opened(run: Run, keep: bool, say: Say) -> Iterator[_Trial]:
    with ExitStack() as stack:
        if not keep and not run.store.root.exists():
            # None is made where nothing is kept.
            run = Run(run.settings, ArtifactStore(stack.enter_context(TempDir("trial-root-"))))
        engine = run.paraphraser.engine()
        if engine.facts.by_image:
            raise ConfigError(
                f"paraphrase.engine={engine.name} looks captions up by their image, so there is none to try; "
                "`paraclip plan` and `paraclip run` take it"
            )
        stack.enter_context(closing(engine))
        own = stack.enter_context(closing(open_generations(run.store)))
        target = own if keep else GenerationStore(stack.enter_context(TempDir("trial-")) / "cache")
        if isinstance(engine, PaidEngine) and engine.max_spend:
            engine.charge(*paid_tokens(own.folder, engine.name, engine.model))
        yield _Trial(run, engine, own, target, say)


class _Trial:
    """Both steps over a few captions."""

    def __init__(self, run: Run, engine: Engine, cache: GenerationStore, target: GenerationStore, say: Say) -> None:
        """Answers are looked for in `cache` and `target`, and kept in `target`."""
        self._run, self._engine, self._say = run, engine, say
        self._paraphraser, self._options = run.paraphraser, run.paraphraser.options
        self._cache, self._target = cache, target
        self._counts = Counts()
        self._sender = RequestSender(engine, target, self._counts, self._options.chunk)
        spec = self._spec(2)
        self._gates, self._models = gates_of(spec.gates), Judge.with_models(spec)

    def run(self, captions: Sequence[str]) -> Trial:
        """Try both steps of each caption."""
        texts, left_out = [clean(caption) for caption in captions], self._left_out(captions)
        tried = dict.fromkeys(text for text, why in zip(texts, left_out, strict=True) if not why)
        rows = [(text, text) for text in tried]
        first = dict(zip(rows, self._step(1, rows), strict=True))
        pairs = list(dict.fromkeys((row[0], answer) for row in rows for answer in _chosen(first[row])))
        second = dict(zip(pairs, self._step(2, pairs), strict=True))
        engine, counts = self._engine, self._counts
        spend = None
        if isinstance(engine, PaidEngine) and engine.priced:
            spend = round(engine.cost(counts.prompt_tokens, counts.completion_tokens), 6)
        return Trial(
            engine.name,
            engine.model,
            self._paraphraser.gates.preset,
            (*self._gates.text, *self._gates.meaning),
            tuple(_caption(text, why, first, second) for text, why in zip(texts, left_out, strict=True)),
            counts.generated,
            counts.cached,
            counts.prompt_tokens,
            counts.completion_tokens,
            spend,
            self._target is self._cache,
        )

    def _left_out(self, captions: Sequence[str]) -> list[str]:
        """Why ingest would leave out each caption, so that no run would ask about it; empty where it would not."""
        return [": ".join(cleaned(caption, self._run.settings.data)[1] or ()) for caption in captions]

    def _step(self, step: int, rows: Sequence[Texts]) -> list[list[Attempt]]:
        """The attempts of each row, until one has an accepted answer or none is left."""
        spec, options = self._spec(step), self._options
        attempts: list[list[Attempt]] = [[] for _ in rows]
        pending = list(range(len(rows)))
        for attempt in range(options.attempts if rows else 0):
            request = step_requests(options, step, self._engine.model, attempt)
            texts = [rows[number][1] for number in pending]
            answers = self._answers(prompt_for(options, step), request, options.sampling, texts)
            requests = [Request(*rows[number], answers[rows[number][1]][0]) for number in pending]
            self._say(f"judging the answers of step {step}")
            judge = self._judge(spec, requests)
            judged = zip(pending, requests, judge.explain(requests), judge.judge(requests), strict=True)
            for number, asked, candidates, verdict in judged:
                cached = answers[asked.source][1]
                attempts[number].append(self._attempt(request, asked, cached, candidates, verdict))
            pending = [number for number in pending if not attempts[number][-1].chosen]
            if not pending:
                break
        return attempts

    def _spec(self, step: int) -> JudgeSpec:
        return judge_spec(self._paraphraser, step, CONTEXT_LENGTH)

    def _attempt(
        self, request: RequestKeys, asked: Request, cached: bool, candidates: list[Candidate], verdict: Verdict
    ) -> Attempt:
        # Step 2 gives each of step 1's rewrites one of its own.
        keep = self._options.keep if request.step == 1 else 1
        return Attempt(
            request.step,
            request.attempt,
            asked.source,
            request.key(asked.source).hex(),
            cached,
            tuple(asked.answers),
            tuple(candidates),
            tuple(answer for answer, _ in verdict.accepted[:keep]),
            verdict.reason,
            verdict.detail,
        )

    def _answers(
        self, template: PromptTemplate, request: RequestKeys, sampling: SamplingOptions, texts: Sequence[str]
    ) -> dict[str, tuple[tuple[str, ...], bool]]:
        """Text → its raw answers, and whether the root's cache had them; words without an answer are left out."""
        texts = list(dict.fromkeys(texts))
        if not texts:
            return {}
        keys = request.keys(texts)
        earlier, before = (_by_key(cache.lookup(keys)) for cache in (self._target, self._cache))
        by_key = earlier | before
        pairs = list(zip(texts, keys.to_pylist(), strict=True))
        self._counts.cached += len(before)
        answers = {text: (by_key[key], key in before) for text, key in pairs if key in by_key}
        todo = [(text, key) for text, key in pairs if key not in by_key]
        if todo:
            self._announce(request.step, len(todo))
            for part in self._sender.ask(request, template, sampling, todo):
                answers |= {text: (completion.texts, False) for text, _, completion in part}
        return answers

    def _announce(self, step: int, requests: int) -> None:
        engine = self._engine
        if not self._counts.generated and isinstance(engine, CheckedEngine):
            engine.check()
        loading = "; its model is loaded first" if engine.facts.local and not self._counts.generated else ""
        what = f"{requests} requests of step {step}" if step else f"other words for {requests} single ones"
        self._say(f"asking {engine.name}: {what}{loading}")

    def _judge(self, spec: JudgeSpec, requests: Sequence[Request]) -> Judge:
        judge = Judge(spec, self._models.encoder, self._models.nli, self._models.pieces)
        if spec.words and judge.encoder is not None:
            texts = [text for one in requests for text in bases(one.source, one.caption, one.answers, spec.step)]
            judge.synonyms = find_synonyms(texts, self._words, judge.encoder.encode, judge.pieces)
        return judge

    def _words(self, words: Sequence[str]) -> dict[str, Sequence[str]]:
        request = word_requests(self._options, self._engine.model)
        return {word: texts for word, (texts, _) in self._answers(THESAURUS, request, WORD_SAMPLING, words).items()}


def _caption(text: str, left_out: str, first: Attempts, second: Attempts) -> CaptionTrial:
    attempts, rewrites = list(first.get((text, text), ())), []
    for answer in _chosen(attempts):
        further = second[text, answer]
        attempts += further
        rewrites.append(Rewrite(answer, next(iter(_chosen(further)), None)))
    return CaptionTrial(text, left_out, tuple(attempts), tuple(rewrites))


def _chosen(attempts: Sequence[Attempt]) -> tuple[str, ...]:
    return attempts[-1].chosen if attempts else ()


def _by_key(answers: pa.Table) -> dict[bytes, tuple[str, ...]]:
    completions = map(tuple, answers.column("completions").to_pylist())
    return dict(zip(answers.column("key").to_pylist(), completions, strict=True))
