"""What is kept when, of engines that answer at once and of those that hand answers over one by one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pytest

from paraclip.storage.answers import AnswerStore
from paraclip_core.config import ParaphraseOptions
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase import sending as module
from paraclip_core.paraphrase.engines import Completion, Prompt, SamplingOptions
from paraclip_core.paraphrase.keys import RequestKeys, sampling_json
from paraclip_core.paraphrase.prompts import PAPER
from paraclip_core.paraphrase.sending import Part, RequestSender
from paraclip_core.tables import GENERATIONS
from tests.kit.scripted_engine import Scripted, Streaming

REQUESTS = [(f"text {number}", number.to_bytes(16, "little")) for number in range(20)]


def request(seed: int = 7, attempt: int = 0) -> RequestKeys:
    sampling = sampling_json(SamplingOptions(n=1))
    return RequestKeys(1, "scripted-1", PAPER[1].id, PAPER[1].hash, sampling, seed, attempt)


def sender(engine: Any, cache: AnswerStore, chunk: int = 8) -> RequestSender:
    options = ParaphraseOptions(prompts="paper", sampling=SamplingOptions(n=1), chunk=chunk)
    return RequestSender(engine, cache, options)


def ask(engine: Any, cache: AnswerStore, chunk: int = 8) -> Iterator[Part]:
    return sender(engine, cache, chunk).send(request(), REQUESTS)


def stored(cache: AnswerStore) -> dict[bytes, list[str]]:
    table = cache.lookup(pa.array([key for _, key in REQUESTS], pa.binary(16)))
    return dict(zip(table.column("key").to_pylist(), table.column("completions").to_pylist(), strict=True))


def appends(cache: AnswerStore) -> int:
    return len(cache.parts.names())


def texts_of(parts: Sequence[Part]) -> list[str]:
    return [text for part in parts for text, _, _ in part]


@pytest.mark.parametrize("chunk", [7, 20])
def test_a_chunk_is_kept_before_the_next_is_asked(chunk: int, cache: AnswerStore) -> None:
    engine = Scripted()
    sending = sender(engine, cache, chunk)
    counts = sending.counts
    for number, part in enumerate(sending.send(request(), REQUESTS), 1):
        assert len(part) <= chunk and len(stored(cache)) == len(engine.asked) == counts.generated
        assert appends(cache) == number
    assert appends(cache) == -(-20 // chunk)
    assert stored(cache) == {key: [f"well {text}"] for text, key in REQUESTS}
    assert (counts.generated, counts.prompt_tokens, counts.completion_tokens) == (20, 200, 100)


def test_a_generation_says_what_was_asked(cache: AnswerStore) -> None:
    list(ask(Scripted(), cache, chunk=64))
    (name,) = cache.parts.names()
    table = cache.parts.open(name).read()
    assert table.schema.equals(GENERATIONS)
    asked = {"key": REQUESTS[3][1], "step": 1, "attempt": 0, "input": "text 3", "seed": 7}
    asked |= {"engine": "scripted", "model": "scripted-1", "sampling": sampling_json(SamplingOptions(n=1))}
    asked |= {"prompt": "paper/1", "prompt_hash": PAPER[1].hash}
    answered = {"completions": ["well text 3"], "prompt_tokens": 10, "completion_tokens": 5}
    assert table.to_pylist()[3] == asked | answered


def test_lone_surrogates_are_kept_and_handed_on_as_the_same_text(cache: AnswerStore) -> None:
    (part,) = ask(Scripted(lambda prompt: (f"a \ud800 {prompt.text}",)), cache, chunk=64)
    assert {key: list(completion.texts) for _, key, completion in part} == stored(cache)
    assert part[0][2].texts == ("a ? text 0",)


def test_a_stream_is_kept_by_half_chunks_before_it_is_used(cache: AnswerStore) -> None:
    engine, count = Streaming([*range(19, -1, -1)]), 0
    sending = sender(engine, cache)
    counts = sending.counts
    for part in sending.send(request(), REQUESTS):
        count += len(part)
        assert len(stored(cache)) == count and len(part) <= 4
        # Sorted within a part, whichever came first.
        assert texts_of([part]) == sorted(texts_of([part]), key=lambda text: int(text.split()[1]))
    assert count == 20 and appends(cache) == 5 and engine.closed
    assert stored(cache) == {key: [f"well {text}"] for text, key in REQUESTS}
    assert (counts.generated, counts.prompt_tokens, counts.completion_tokens) == (20, 200, 100)


def test_a_stream_is_kept_while_nothing_more_comes(cache: AnswerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP_SECONDS", 0.05)

    class Hanging(Streaming):
        def stream(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
            yield from super().stream(prompts[:3], sampling)
            while len(stored(cache)) < 3:
                time.sleep(0.01)
                yield None
            yield from ((number, Completion(("late",), 1, 1)) for number in range(3, len(prompts)))

    # What came at once afterwards may be one part or several.
    sizes = [len(part) for part in ask(Hanging(), cache, chunk=64)]
    assert sum(sizes) == 20 and 3 in itertools.accumulate(sizes)


@pytest.mark.parametrize("failure", [EngineError("died"), KeyboardInterrupt()], ids=["death", "interrupt"])
def test_what_a_stream_gave_before_it_failed_is_kept(failure: BaseException, cache: AnswerStore) -> None:
    parts: list[Part] = []
    with pytest.raises(type(failure)):
        parts.extend(ask(Streaming(range(7), failure), cache))
    assert len(stored(cache)) == 7


def test_a_wrong_number_of_completions_is_an_engine_error(cache: AnswerStore) -> None:
    class Short(Scripted):
        def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
            return super().generate(prompts, sampling)[1:]

    with pytest.raises(EngineError, match="gave 7 completions for 8 prompts"):
        list(ask(Short(), cache))
    assert not stored(cache)
    with pytest.raises(EngineError, match="streaming gave 19 completions for 20 prompts"):
        list(ask(Streaming(range(19)), cache))
    assert len(stored(cache)) == 19


def test_a_seed_follows_from_the_runs_and_the_attempt(cache: AnswerStore) -> None:
    def seeds(seed: int, attempt: int) -> set[int]:
        engine = Scripted()
        list(sender(engine, cache).send(request(seed, attempt), REQUESTS))
        return {prompt.seed for prompt in engine.asked}

    assert [seeds(7, attempt) for attempt in range(3)] == [{7}, {7926}, {15845}]
    # What engines take is a whole number of 31 bits.
    assert seeds(2**31 - 1, 1) == {7918}
