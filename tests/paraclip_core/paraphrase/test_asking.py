"""Asking: what is kept when, of engines that answer at once and of those that hand answers over one by one."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import pytest

from paraclip_core.config import SamplingOptions
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase import asking
from paraclip_core.paraphrase.asking import Asker, Part
from paraclip_core.paraphrase.counts import Counts
from paraclip_core.paraphrase.prompts import PAPER
from paraclip_core.paraphrase.protocol import Completion, Prompt

TODO = [(f"text {number}", number.to_bytes(16, "little")) for number in range(20)]


class Streaming:
    """Hands over completions in a given order, then fails or ends."""

    name, model = "streaming", "streaming-1"

    def __init__(self, order: Sequence[int], failure: BaseException | None = None) -> None:
        self._order, self._failure = order, failure
        self.closed = False

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        raise AssertionError("a stream is there")

    def stream(
        self, prompts: Sequence[Prompt], sampling: SamplingOptions
    ) -> Generator[tuple[int, Completion], None, None]:
        try:
            for number in self._order:
                yield number, Completion((f"well {prompts[number].text}",), 10, 5)
            if self._failure:
                raise self._failure
        finally:
            self.closed = True

    def close(self) -> None:
        pass


class Seeds(Streaming):
    """Answers each prompt with the seed that it is asked with."""

    stream = None  # type: ignore[assignment]

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        return [Completion((str(prompt.seed),), 10, 5) for prompt in prompts]


class Partial(Streaming):
    """Answers three prompts of its second call, then dies."""

    stream = None  # type: ignore[assignment]
    calls = 0

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        self.calls += 1
        found = [Completion((f"well {prompt.text}",), 10, 5) for prompt in prompts]
        if self.calls == 2:
            raise EngineError("died", finished={3: found[3], 0: found[0], 1: found[1]})
        return found


def ask(engine: Any, cache: Any, counts: Counts | None = None, chunk: int = 8) -> Iterator[Part]:
    return Asker(engine, cache, counts or Counts(), 7, chunk).ask(PAPER[1], 1, SamplingOptions(), 0, TODO)


def texts_of(parts: Sequence[Part]) -> list[str]:
    return [text for part in parts for text, _, _ in part]


def test_a_stream_is_kept_by_half_chunks_before_it_is_used(cache: Any) -> None:
    counts = Counts()
    engine = Streaming([*range(19, -1, -1)])
    kept = 0
    for part in ask(engine, cache, counts):
        kept += len(part)
        assert len(cache.rows) == kept and len(part) <= 4
        # Sorted within a part, whichever came first.
        assert texts_of([part]) == sorted(texts_of([part]), key=lambda text: int(text.split()[1]))
    assert kept == 20 and cache.appends == 5 and engine.closed
    assert cache.rows == {key: [f"well {text}"] for text, key in TODO}
    assert (counts.generated, counts.prompt_tokens, counts.completion_tokens) == (20, 200, 100)


def test_a_slow_stream_is_kept_by_the_clock(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "KEEP_SECONDS", 0.0)
    assert [len(part) for part in ask(Streaming(range(20)), cache)] == [1] * 20


@pytest.mark.parametrize("failure", [EngineError("died"), KeyboardInterrupt()], ids=["death", "interrupt"])
def test_what_a_stream_gave_before_it_failed_is_kept(failure: BaseException, cache: Any) -> None:
    parts: list[Part] = []
    with pytest.raises(type(failure)):
        parts.extend(ask(Streaming(range(7), failure), cache))
    assert len(cache.rows) == 7


def test_a_stream_that_ends_early_is_an_engine_error(cache: Any) -> None:
    with pytest.raises(EngineError, match="streaming gave 19 completions for 20 prompts"):
        list(ask(Streaming(range(19)), cache))
    assert len(cache.rows) == 19


def test_an_unused_stream_is_closed(cache: Any) -> None:
    engine = Streaming(range(20))
    parts = ask(engine, cache)
    next(parts)
    del parts
    assert engine.closed


def test_what_came_with_a_failure_is_kept(cache: Any) -> None:
    seen: list[str] = []
    with pytest.raises(EngineError, match="died"):
        for part in ask(Partial([]), cache):
            seen += texts_of([part])
    assert seen == [text for text, _ in [*TODO[:8], TODO[8], TODO[9], TODO[11]]]
    assert len(cache.rows) == 11


def test_a_seed_follows_from_the_runs_and_the_attempt(cache: Any) -> None:
    def seeds(seed: int, attempt: int) -> set[str]:
        asker = Asker(Seeds([]), cache, Counts(), seed, 8)
        parts = asker.ask(PAPER[1], 1, SamplingOptions(), attempt, TODO)
        return {text for part in parts for _, _, found in part for text in found.texts}

    assert [seeds(7, attempt) for attempt in range(3)] == [{"7"}, {"7926"}, {"15845"}]
    # What engines take is a whole number of 31 bits.
    assert seeds(2**31 - 1, 1) == {"7918"}
