"""Generate: ask an engine for what the cache does not hold. What comes is kept before anything else is done with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

import pyarrow as pa

from paraclip_core.config import SamplingOptions
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.engines.base import Completion, Engine, Prompt, StreamingEngine
from paraclip_core.paraphrase.prompts import PromptTemplate
from paraclip_core.paraphrase.requests import GenerationCache, RequestKeys
from paraclip_core.tables import GENERATIONS

KEEP_SECONDS = 2.0
"""What an engine hands over one by one is kept at least so often: a kill loses no more of what was paid for."""

Part = list[tuple[str, bytes, Completion]]
"""Text, key and completion of some requests."""
Started = Callable[[int], Callable[[int], None]]
"""Told how many requests are to be answered; returns who is told how many more are."""
Numbered = list[tuple[int, Completion]]
"""Number of the prompt, and its completion."""


@dataclass
class Counts:
    """What a step did, for its manifest."""

    captions: int = 0
    """Rows that were to be paraphrased."""
    requested: int = 0
    """Different requests, all attempts together, words included."""
    cached: int = 0
    """Those of them that the cache had answered."""
    generated: int = 0
    judged: int = 0
    """Answers that were judged now; the others had been judged before."""
    accepted: int = 0
    """Captions with an accepted answer."""
    kept: int = 0
    """Rows written: several of a caption where `paraphrase.keep` allows that."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Rejections by reason, one for each caption and attempt."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    engine_seconds: float = 0.0
    judge_seconds: float = 0.0

    def metrics(self) -> dict[str, Any]:
        """The counts as JSON-ready values."""
        seconds = {name: round(getattr(self, name), 3) for name in ("engine_seconds", "judge_seconds")}
        return {**vars(self), "rejected": dict(sorted(self.rejected.items())), **seconds}


class RequestSender:
    """Asks and keeps chunk by chunk; an engine that hands answers over one by one gets all requests at once."""

    def __init__(self, engine: Engine, cache: GenerationCache, counts: Counts, chunk: int) -> None:
        """What is asked and kept is added to `counts`."""
        self._engine, self._cache, self.counts, self._chunk = engine, cache, counts, chunk

    def answers(
        self,
        request: RequestKeys,
        template: PromptTemplate,
        sampling: SamplingOptions,
        texts: Sequence[str],
        started: Started,
    ) -> dict[str, Sequence[str]]:
        """Text → raw answers, asked for where the cache does not hold them; without those that the engine has none for.

        `started` is told how many are to be asked for, where any are, and returns who is told of each that came.
        """
        array = request.keys(texts)
        keys: list[bytes] = array.to_pylist()
        cached = self._cache.lookup(array)
        by_key = dict(zip(cached.column("key").to_pylist(), cached.column("completions").to_pylist(), strict=True))
        answers = {text: by_key[key] for text, key in zip(texts, keys, strict=True) if key in by_key}
        todo = [(text, key) for text, key in zip(texts, keys, strict=True) if key not in by_key]
        self.counts.requested += len(texts)
        self.counts.cached += len(answers)
        if todo:
            came = started(len(todo))
            for part in self.ask(request, template, sampling, todo):
                answers |= {text: completion.texts for text, _, completion in part}
                came(len(part))
        return answers

    def ask(
        self,
        request: RequestKeys,
        template: PromptTemplate,
        sampling: SamplingOptions,
        todo: Sequence[tuple[str, bytes]],
    ) -> Generator[Part, None, None]:
        """Answers to the texts and keys in `todo`, part by part, in the order in which they come."""
        seed = attempt_seed(request.seed, request.attempt)
        prompts = [Prompt(template.messages(text), text, request.step, seed) for text, _ in todo]
        streams, done = isinstance(self._engine, StreamingEngine), 0
        for numbered in self._streamed(prompts, sampling) if streams else self._chunks(prompts, sampling):
            part = _part(todo, numbered)
            if part:
                self._keep(part, request)
            self.counts.generated += len(part)
            done += len(part)
            yield part
        if done != len(todo):
            raise EngineError(f"{self._engine.name} gave {done} completions for {len(todo)} prompts")

    def _chunks(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> Iterator[Numbered]:
        for start in range(0, len(prompts), self._chunk):
            some = prompts[start : start + self._chunk]
            began = time.monotonic()
            completions = self._engine.generate(some, sampling)
            self.counts.engine_seconds += time.monotonic() - began
            if len(completions) != len(some):
                raise EngineError(f"{self._engine.name} gave {len(completions)} completions for {len(some)} prompts")
            yield list(enumerate(completions, start))

    def _keep(self, part: Part, request: RequestKeys) -> None:
        count = len(part)
        columns = {
            "key": [key for _, key, _ in part],
            "step": [request.step] * count,
            "attempt": [request.attempt] * count,
            "input": [storable(text) for text, _, _ in part],
            "engine": [self._engine.name] * count,
            "model": [request.model] * count,
            "prompt": [request.prompt_id] * count,
            "prompt_hash": [request.prompt_hash] * count,
            "sampling": [request.sampling] * count,
            "seed": [request.seed] * count,
            "completions": [list(completion.texts) for _, _, completion in part],
            "prompt_tokens": [completion.prompt_tokens for _, _, completion in part],
            "completion_tokens": [completion.completion_tokens for _, _, completion in part],
        }
        self._cache.append(pa.Table.from_pydict(columns, schema=GENERATIONS))
        self.counts.prompt_tokens += sum(columns["prompt_tokens"])
        self.counts.completion_tokens += sum(columns["completion_tokens"])

    def _streamed(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> Iterator[Numbered]:
        assert isinstance(self._engine, StreamingEngine)
        enough = max(1, self._chunk // 2)
        waiting: Numbered = []
        failure: BaseException | None = None
        ended = False
        with closing(self._engine.stream(prompts, sampling)) as stream:
            began = time.monotonic()
            while not ended:
                try:
                    item = next(stream)
                except StopIteration:
                    ended = True
                except BaseException as error:
                    # An interrupt, too, must not cost what was answered before it.
                    failure, ended = error, True
                else:
                    waiting += [item] if item is not None else []
                now = time.monotonic()
                if waiting and (ended or len(waiting) >= enough or now - began >= KEEP_SECONDS):
                    self.counts.engine_seconds += now - began
                    yield sorted(waiting, key=itemgetter(0))
                    waiting, began = [], time.monotonic()
        if failure is not None:
            raise failure


def attempt_seed(seed: int, attempt: int) -> int:
    """Seed of an attempt's prompts: another attempt must draw other answers."""
    return (seed + 7919 * attempt) % 2**31


def storable(text: str) -> str:
    """Text that UTF-8 can hold: lone surrogates, which a model's byte tokens can give, become a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _part(todo: Sequence[tuple[str, bytes]], numbered: Numbered) -> Part:
    # What is judged now is what a cached run will judge.
    return [(*todo[i], replace(done, texts=tuple(map(storable, done.texts)))) for i, done in numbered]
