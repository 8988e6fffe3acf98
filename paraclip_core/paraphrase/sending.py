"""Sending requests to an engine; each completion is kept before anything else is done with it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

import pyarrow as pa

from paraclip_core.config import ParaphraseOptions
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.engines import CheckedEngine, Completion, Engine, Prompt, StreamingEngine
from paraclip_core.paraphrase.keys import RequestKeys
from paraclip_core.paraphrase.prompts import prompt_for
from paraclip_core.paraphrase.step_tables import GenerationCache
from paraclip_core.tables import GENERATIONS

KEEP_SECONDS = 2.0
"""Streamed completions are stored at least this often: a kill loses no more of what was paid for."""

Part = list[tuple[str, bytes, Completion]]
"""Texts, keys and completions of some requests."""
Phase = Callable[[int], None]
"""Called with the number of items newly done."""


@dataclass
class Counts:
    """What a step did, for its manifest."""

    captions: int = 0
    """Rows to paraphrase."""
    requested: int = 0
    """Distinct requests over all attempts."""
    cached: int = 0
    """Of these, the requests that the cache had answered."""
    generated: int = 0
    filtered: int = 0
    """Answers filtered by this step; the others had been filtered before."""
    accepted: int = 0
    """Captions with an accepted answer."""
    kept: int = 0
    """Rows written: several per caption if `paraphrase.keep` allows it."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Rejections by reason, one per caption and attempt."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    engine_seconds: float = 0.0
    filter_seconds: float = 0.0

    def metrics(self) -> dict[str, Any]:
        seconds = {name: round(getattr(self, name), 3) for name in ("engine_seconds", "filter_seconds")}
        return {**vars(self), "rejected": dict(sorted(self.rejected.items())), **seconds}


class RequestSender:
    """Sends requests to an engine, and keeps each completion before anything else is done with it."""

    def __init__(self, engine: Engine, cache: GenerationCache, options: ParaphraseOptions) -> None:
        """Prompts, sampling and the size of chunks are those of the options."""
        self.engine, self.counts = engine, Counts()
        self._cache, self._options, self._checked = cache, options, False

    def send(self, request: RequestKeys, todo: Sequence[tuple[str, bytes]]) -> Generator[Part, None, None]:
        """Yield completions of the texts and keys in `todo`, part by part, in order of arrival."""
        engine = self.engine
        if isinstance(engine, CheckedEngine) and not self._checked:
            engine.check()
        self._checked = True
        prompts = prompts_of(request, self._options, [text for text, _ in todo])
        chunk = self._options.chunk
        if isinstance(engine, StreamingEngine):
            stream, enough, seconds = engine.stream(prompts, self._options.sampling), max(1, chunk // 2), KEEP_SECONDS
        else:
            stream, enough, seconds = self._in_chunks(prompts, chunk), chunk, math.inf
        sent, waiting, began = 0, list[tuple[int, Completion]](), time.monotonic()
        with closing(stream):
            try:
                for item in stream:
                    waiting += [] if item is None else [item]
                    if waiting and (len(waiting) >= enough or time.monotonic() - began >= seconds):
                        full, waiting = waiting, []
                        self.counts.engine_seconds += time.monotonic() - began
                        sent += len(full)
                        yield self._keep(full, request, todo)
                        began = time.monotonic()
            finally:
                # An interrupt or a dead engine must not lose earlier answers.
                self.counts.engine_seconds += time.monotonic() - began
                rest = self._keep(waiting, request, todo)
        if rest:
            yield rest
        if sent + len(rest) != len(todo):
            raise EngineError(f"{engine.name} gave {sent + len(rest)} completions for {len(todo)} prompts")

    def _in_chunks(self, prompts: Sequence[Prompt], size: int) -> Generator[tuple[int, Completion], None, None]:
        for start in range(0, len(prompts), size):
            chunk = prompts[start : start + size]
            completions = self.engine.generate(chunk, self._options.sampling)
            if len(completions) != len(chunk):
                raise EngineError(f"{self.engine.name} gave {len(completions)} completions for {len(chunk)} prompts")
            yield from enumerate(completions, start)

    def _keep(
        self, completions: list[tuple[int, Completion]], request: RequestKeys, todo: Sequence[tuple[str, bytes]]
    ) -> Part:
        """Store completions, each with the number of its request in `todo`, in the cache."""
        part: Part = []
        for number, completion in sorted(completions, key=itemgetter(0)):
            # Filter exactly what a cached run will filter.
            part.append((*todo[number], replace(completion, texts=tuple(map(storable, completion.texts)))))
        if not part:
            return part
        rows = [
            {
                **request.columns(self.engine.name),
                "key": key,
                "input": storable(text),
                "completions": completion.texts,
                "prompt_tokens": completion.prompt_tokens,
                "completion_tokens": completion.completion_tokens,
            }
            for text, key, completion in part
        ]
        self._cache.append(pa.Table.from_pylist(rows, schema=GENERATIONS))
        self.counts.generated += len(part)
        self.counts.prompt_tokens += sum(completion.prompt_tokens for _, _, completion in part)
        self.counts.completion_tokens += sum(completion.completion_tokens for _, _, completion in part)
        return part


def prompts_of(request: RequestKeys, options: ParaphraseOptions, texts: Iterable[str]) -> list[Prompt]:
    """The prompts that an engine gets for requests about these texts."""
    template = prompt_for(options, request.step)
    # Another attempt must sample other answers.
    seed = (request.seed + 7919 * request.attempt) % 2**31
    return [Prompt(template.messages(text), text, request.step, seed) for text in texts]


def storable(text: str) -> str:
    """Text that UTF-8 can encode: lone surrogates, which a model's byte tokens can produce, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
