"""The next block is asked for while one is judged."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from typing import Any

import pyarrow as pa
import pytest

from paraclip_core.captions.tokens import Tokeniser
from paraclip_core.config import GateOptions, ParaphraseOptions, RegenerateOptions, SamplingOptions
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase import generate
from paraclip_core.paraphrase.choose import Chooser, Request, Verdict
from paraclip_core.paraphrase.generate import Paraphraser
from paraclip_core.paraphrase.intake import blocks
from paraclip_core.paraphrase.meanwhile import Meanwhile
from paraclip_core.paraphrase.protocol import Completion, Prompt

Rows = Callable[[Sequence[str]], pa.RecordBatch]
BLOCK = 40
SECONDS = 20
OPTIONS = ParaphraseOptions(gates=GateOptions(preset="paper"), prompts="paper", chunk=8)
CAPTIONS = [f"photo {number} of a dog on the beach" for number in range(3 * BLOCK - 10)]


class Recorder:
    """An engine that says what it was asked, and fails at one text where it is told to."""

    name = model = "recorder"

    def __init__(self, fails_at: str | None = None) -> None:
        self.asked: list[str] = []
        self.threads: list[str] = []
        self.news = threading.Condition()
        self._fails_at = fails_at

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        texts = [prompt.text for prompt in prompts]
        if self._fails_at in texts:
            raise EngineError("the engine is gone")
        with self.news:
            self.asked += texts
            self.threads.append(threading.current_thread().name)
            self.news.notify_all()
        return [Completion((f"a well made {text}",), 3, 4) for text in texts]

    def close(self) -> None:
        """Nothing to free."""


class Patient(Chooser):
    """Judges a block only when something of the next one was asked for."""

    def __init__(self, engine: Recorder, texts: Sequence[str]) -> None:
        super().__init__(OPTIONS.gates, 1)
        self._engine, self._texts = engine, texts

    def choose(self, requests: Sequence[Request]) -> list[Verdict]:
        after = self._texts.index(requests[-1].source) + 1
        if after < len(self._texts):
            with self._engine.news:
                came = self._engine.news.wait_for(lambda: self._texts[after] in self._engine.asked, SECONDS)
            assert came, "the engine idled while a block was judged"
        return super().choose(requests)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "blocks", lambda batches: blocks(batches, BLOCK))


def paraphraser(engine: Any, cache: Any, chooser: Chooser | None = None, options: Any = OPTIONS) -> Paraphraser:
    return Paraphraser(1, options, engine, cache, chooser or Chooser(options.gates, 1), Tokeniser().encode_batch)


def test_the_engine_works_while_a_block_is_judged(cache: Any, rows_of: Rows) -> None:
    engine = Recorder()
    found = paraphraser(engine, cache, Patient(engine, CAPTIONS))
    kept = [kept.num_rows for kept, _ in found.run([rows_of(CAPTIONS)])]
    assert kept == [BLOCK, BLOCK, BLOCK - 10]
    assert engine.asked == CAPTIONS, "each once, in order"
    assert "meanwhile" in engine.threads
    counts = found.counts
    assert (counts.requested, counts.cached, counts.generated) == (len(CAPTIONS), 0, len(CAPTIONS))


@pytest.mark.parametrize("again", [{}, {"attempts": 2}, {"regenerate": (RegenerateOptions(reason="empty"),)}], ids=str)
def test_asking_ahead_changes_nothing(
    again: dict[str, Any], cache: Any, rows_of: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every fourth first answer is empty, and is asked for again where there is another attempt.
    class Sloppy(Recorder):
        def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
            found = super().generate(prompts, sampling)
            return [
                Completion(("",), 3, 4) if prompt.seed == 0 and int(prompt.text.split()[1]) % 4 == 0 else answer
                for prompt, answer in zip(prompts, found, strict=True)
            ]

    options = OPTIONS.model_copy(update=again)
    halves = [rows_of(CAPTIONS[:60]), rows_of(CAPTIONS[60:] + CAPTIONS[:20])]
    outcomes = []
    for ahead in (True, False):
        if not ahead:
            monkeypatch.setattr(Paraphraser, "_ask_ahead", lambda _: nullcontext())
        engine, store = Sloppy(), type(cache)()
        found = paraphraser(engine, store, options=options)
        outcomes.append((list(found.run(halves)), found.counts.metrics(), engine.asked, list(store.rows.items())))
        outcomes[-1][1].pop("engine_seconds")
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0][2]) == len(CAPTIONS) + (28 if again else 0)


def test_a_failure_ahead_comes_after_the_block_that_is_done(cache: Any, rows_of: Rows) -> None:
    engine = Recorder(fails_at=CAPTIONS[BLOCK + 20])
    run = paraphraser(engine, cache).run([rows_of(CAPTIONS)])
    assert next(run)[0].num_rows == BLOCK
    with pytest.raises(EngineError, match="gone"):
        next(run)
    assert len(cache.rows) == BLOCK + 16, "all chunks before the failure are kept"
    again = Recorder()
    assert sum(kept.num_rows for kept, _ in paraphraser(again, cache).run([rows_of(CAPTIONS)])) == len(CAPTIONS)
    assert again.asked == CAPTIONS[BLOCK + 16 :]


def test_who_stops_early_leaves_no_thread_and_no_open_stream(cache: Any, rows_of: Rows) -> None:
    closed = []

    class Stream(Recorder):
        def stream(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> Any:
            try:
                for number, prompt in enumerate(prompts):
                    yield number, self.generate([prompt], sampling)[0]
            finally:
                closed.append(len(prompts))

    engine = Stream()
    run = paraphraser(engine, cache, Patient(engine, CAPTIONS)).run([rows_of(CAPTIONS)])
    next(run)
    run.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert closed == [BLOCK, BLOCK]
    assert not [thread for thread in threading.enumerate() if thread.name == "meanwhile"]


def test_items_come_in_order_and_a_failure_in_its_place() -> None:
    going_on = threading.Semaphore(0)

    def numbers() -> Generator[int, None, None]:
        yield 1
        yield 2
        going_on.release()
        raise ValueError("after two")

    meanwhile = Meanwhile(numbers())
    with meanwhile:
        assert going_on.acquire(timeout=SECONDS)
    items = iter(meanwhile)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="after two"):
        next(items)


def test_what_is_under_way_when_an_interrupt_comes_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, kept = threading.Event(), threading.Event(), []

    def slow() -> Generator[int, None, None]:
        for item in range(2):
            begun.set()
            go_on.wait(SECONDS)
            kept.append(item)
            yield item

    meanwhile = Meanwhile(slow())
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt), meanwhile:
        begun.wait(SECONDS)
        patched.setattr(meanwhile._thread, "join", interrupted)
    threading.Timer(0.05, go_on.set).start()
    meanwhile.close()
    assert kept == [0], "what was paid for is kept, and nothing more is asked for"


def interrupted() -> None:
    raise KeyboardInterrupt
