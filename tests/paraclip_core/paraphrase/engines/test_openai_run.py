"""When the engine `openai` stops, what it keeps, and what it never shows."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from openai_asking import (  # pyright: ignore[reportMissingImports]
    KEY,
    TWO,
    VARIABLE,
    Connect,
    ask,
    numbered,
)
from openai_server import (  # pyright: ignore[reportMissingImports]
    Fault,
    OpenAIServer,
    body,
    hang,
    reset,
    status,
    words_of,
)

from paraclip_core.config import GateOptions, OpenAIOptions, ParaphraseOptions
from paraclip_core.errors import BudgetError, ConfigError, EngineError, with_notes
from paraclip_core.paraphrase.engines import make_engine
from paraclip_core.paraphrase.engines.base import Completion, Prompt


def test_the_breaker_stops_when_the_server_is_gone(openai_server: OpenAIServer, connect: Connect) -> None:
    def die_after(asked: dict[str, Any]) -> Any:
        return well(asked) if len(openai_server.asked) <= 40 else reset

    well, openai_server.answer = openai_server.answer, die_after
    with pytest.raises(
        EngineError, match=r"3 requests in a row failed with all their retries .*max_failures=3"
    ) as caught:
        connect(retries=2, concurrency=4).generate(numbered(500), TWO)
    assert len(caught.value.finished) == 40
    # Four at once, three attempts each, and not five hundred.
    assert len(openai_server.asked) <= 40 + 4 * 3 * 2


NAMELESS = "Your prompt was flagged by our usage guidelines."
POISON: dict[str, Fault] = {
    "refused in unknown words": status(400, NAMELESS),
    "refused by FastAPI": body({"detail": [{"msg": NAMELESS}]}, 422),
    "forbidden on the way": body(b"<h1>403 Request blocked</h1>", 403),
    "always broken": status(500, NAMELESS),
    "always cut off": reset,
}


@pytest.mark.parametrize("poisoned", [{0}, {7}, {59}, {0, 1, 2, 3, 4}, {20, 21, 22, 23, 58, 59}], ids=str)
@pytest.mark.parametrize("fault", POISON.values(), ids=POISON)
def test_prompts_that_the_server_never_answers_do_not_stop_the_others(
    fault: Fault, poisoned: set[int], openai_server: OpenAIServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    bad, well = {f"caption {number}" for number in poisoned}, openai_server.answer
    openai_server.answer = lambda asked: fault if words_of(asked) in bad else well(asked)
    found = connect(retries=1, concurrency=4).generate(numbered(60), TWO)
    assert {number for number, completion in enumerate(found) if not completion.texts} == poisoned
    assert f"of 60 prompts were declined ('caption {min(poisoned)}'" in caplog.text
    # They are all that is left: whoever asks for them again is answered, too.
    left = connect(retries=1, concurrency=4).generate([numbered(60)[number] for number in sorted(poisoned)], TWO)
    assert not any(completion.texts for completion in left)


def test_draws_before_the_one_that_is_never_answered_are_kept(openai_server: OpenAIServer, connect: Connect) -> None:
    well, seeds = openai_server.answer, dict[str, int]()

    def first_only(asked: dict[str, Any]) -> Any:
        first = seeds.setdefault(words_of(asked), asked["seed"]) == asked["seed"]
        return well(asked) if first or words_of(asked) != "caption 3" else status(500)

    openai_server.answer = first_only
    found = connect(retries=0, ask_for_n=False).generate(numbered(8), TWO)
    assert [len(completion.texts) for completion in found] == [2, 2, 2, 1, 2, 2, 2, 2]


def test_a_poisoned_caption_becomes_a_reject_and_is_not_asked_for_again(
    openai_server: OpenAIServer, connect: Connect, paraphrasing: Any, rows_of: Callable[[list[str]], pa.RecordBatch]
) -> None:
    captions = [f"photo {number} of a red dog on the beach" for number in range(12)]
    options = OFF.model_copy(update={"sampling": TWO})
    well = openai_server.answer
    openai_server.answer = lambda asked: status(400, NAMELESS) if "photo 0 " in words_of(asked) else well(asked)
    generated = []
    for _ in range(2):
        step = paraphrasing.run([rows_of(captions)], connect(), options)
        assert step.rows.num_rows == 11
        (rejected,) = step.rejects.to_pylist()
        assert (rejected["input"], rejected["reason"]) == (captions[0], "no_paraphrase")
        generated.append(step.rounds.counts.generated)
    assert generated == [12, 0]


@pytest.mark.parametrize("left", [460, 1])
@pytest.mark.parametrize("code", [400, 403])
def test_a_server_that_refuses_everything_from_some_time_on_ends_the_run(
    code: int, left: int, openai_server: OpenAIServer, connect: Connect
) -> None:
    well = openai_server.answer

    def refuse(handler: Any) -> None:
        # An answer that came after a refusal would say that the server still answers others.
        while sum(openai_server.answered.values()) < 40:
            time.sleep(0.005)
        time.sleep(0.05)
        status(code, NAMELESS)(handler)

    def answer(asked: dict[str, Any]) -> Any:
        turn = next(turn for turn, other in enumerate(openai_server.asked) if other is asked)
        return well(asked) if turn < 40 else refuse

    openai_server.answer = answer
    with pytest.raises(EngineError, match=NAMELESS) as caught:
        connect(concurrency=4).generate(numbered(40 + left), TWO)
    assert "It was asked about 'caption " in with_notes(caught.value)
    # Nothing of that is taken for declined.
    assert len(caught.value.finished) == 40 and all(found.texts for found in caught.value.finished.values())
    assert len(openai_server.asked) <= 40 + 4 + 3 + 1


def test_a_server_that_dies_before_the_last_answer_is_not_taken_for_one_that_declines(
    openai_server: OpenAIServer, connect: Connect
) -> None:
    well = openai_server.answer
    openai_server.answer = lambda asked: well(asked) if sum(openai_server.answered.values()) < 59 else reset
    with pytest.raises(EngineError, match=r"1 of 60 requests failed .* 'caption 59': .*run again") as caught:
        connect(retries=1, concurrency=1).generate(numbered(60), TWO)
    assert sorted(caught.value.finished) == list(range(59))


def test_one_refused_prompt_does_not_change_how_the_others_are_asked(
    openai_server: OpenAIServer, connect: Connect
) -> None:
    well = openai_server.answer
    openai_server.answer = lambda asked: (
        status(400, "choose n other words") if words_of(asked).endswith("7") else well(asked)
    )
    prompts = [Prompt((("text", f"word {number}"),), f"word {number}", 0, 0) for number in range(20)]
    found = connect(concurrency=1).generate(prompts, TWO)
    assert [number for number, completion in enumerate(found) if not completion.texts] == [7, 17]
    assert set(openai_server.paths) == {"/v1/completions"} and {asked["n"] for asked in openai_server.asked} == {2}


def test_a_server_that_cannot_be_reached(openai_server: OpenAIServer, connect: Connect) -> None:
    openai_server.stop()
    with pytest.raises(EngineError, match=r"All connection attempts failed|Connection refused|ConnectError"):
        ask(connect(retries=1), "a")


def test_concurrency_is_used_and_kept(openai_server: OpenAIServer, connect: Connect) -> None:
    def patient(asked: dict[str, Any]) -> Any:
        until = time.monotonic() + 100
        while openai_server.most_under_way < 8 and time.monotonic() < until:
            time.sleep(0.01)
        return well(asked)

    well, openai_server.answer = openai_server.answer, patient
    connect(concurrency=8, timeout_seconds=200).generate(numbered(24), TWO)
    assert openai_server.most_under_way == 8


def test_per_minute_limits_space_requests_out(openai_server: OpenAIServer, connect: Connect) -> None:
    began = time.monotonic()
    connect(requests_per_minute=1200).generate(numbered(11), TWO)
    assert 0.5 <= max(openai_server.times) - began < 50
    began = time.monotonic()
    # 20 tokens an answer: estimates are put right by what is counted.
    connect(tokens_per_minute=24_000, concurrency=1).generate(numbered(21), TWO)
    assert 0.9 <= max(openai_server.times) - began < 50


OFF = ParaphraseOptions(engine="openai", model="smol", gates=GateOptions(preset="off"))


def completions(over: Any) -> dict[bytes, tuple[int, list[str]]]:
    """Key → prompt tokens and texts of every generation that was kept, those of unfinished requests included."""
    names = over.cache.parts.names()
    rows = (
        pa.concat_tables([pq.read_table(over.cache.parts.folder / name) for name in names]).to_pylist() if names else []
    )
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: (row["prompt_tokens"], row["completions"]) for row in rows}


PRICES = {"price_per_million_prompt_tokens": 100_000, "price_per_million_completion_tokens": 200_000}
"""An answer of the server's has 10 + 2 · 5 tokens: 1 + 2."""


def test_the_spending_cap_is_never_passed_and_everything_is_kept(openai_server: OpenAIServer, connect: Connect) -> None:
    short = TWO.model_copy(update={"max_tokens": 6})
    engine = connect(max_spend=100, **PRICES)
    with pytest.raises(BudgetError, match=r"of paraphrase.openai.max_spend=100 is spent.*raise max_spend") as caught:
        engine.generate(numbered(200), short)
    kept = caught.value.finished
    assert len(kept) == sum(openai_server.answered.values()) == len(openai_server.asked)
    assert engine.spent == pytest.approx(3 * len(kept))
    assert 90 < engine.spent <= 100
    # A later run knows what was spent before it, and goes on when the cap is raised.
    again = connect(max_spend=100, **PRICES)
    again.charge(10 * len(kept), 10 * len(kept))
    with pytest.raises(BudgetError):
        again.generate(numbered(1), short)
    raised = connect(max_spend=110, **PRICES)
    raised.charge(10 * len(kept), 10 * len(kept))
    assert len(raised.generate(numbered(1), short)) == 1
    with pytest.raises(ValueError, match="max_spend needs price_per_million"):
        OpenAIOptions(max_spend=1)


def test_a_cap_without_a_most_that_an_answer_may_cost_is_refused() -> None:
    def options(cap: float, extra: dict[str, Any]) -> OpenAIOptions:
        return OpenAIOptions.model_validate(PRICES | {"max_spend": cap, "extra_body": extra})

    with pytest.raises(ValueError, match="put max_completion_tokens into it"):
        options(1, {"max_tokens": None})
    for extra in ({"max_tokens": 9}, {"max_tokens": None, "max_completion_tokens": 9}, {"reasoning_effort": "low"}):
        options(1, extra)
    options(0, {"max_tokens": None})


def test_requests_that_wait_for_the_cap_do_so_again_after_a_close(connect: Connect) -> None:
    short = TWO.model_copy(update={"max_tokens": 6})
    # Each request sets aside more than its answer costs, so not all of them fit under the cap at once.
    engine = connect(max_spend=38, **PRICES)
    assert len(engine.generate(numbered(10), short)) == 10
    engine.close()
    assert len(engine.generate(numbered(2), short)) == 2
    assert engine.spent == pytest.approx(36)


def test_the_key_is_sent_and_shown_nowhere(
    openai_server: OpenAIServer, connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ask(connect(), "a")
    assert openai_server.keys == {""}
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    engine = connect(api_key_env="MY_KEY")
    openai_server.faults = [
        status(500, f"cannot use {KEY}"),
        body(f"<p>{KEY}".encode()),
        status(401, f"Incorrect key: {KEY}"),
    ]
    with pytest.raises(
        EngineError, match=r"refuses the key in MY_KEY: Incorrect key: \*\*\*; put a valid key"
    ) as caught:
        ask(engine, "a")
    assert openai_server.keys == {"", f"Bearer {KEY}"}
    openai_server.answer = lambda asked: {"choices": [{"text": KEY, "message": {"content": f"it is {KEY}"}}] * 2}
    told = ask(engine, "a")
    seen = [
        str(caught.value),
        repr(caught.value),
        repr(engine),
        engine.model,
        str(told),
        caplog.text,
        str(vars(engine)),
    ]
    assert not any(KEY in text for text in seen)
    assert told[0].texts == ("it is ***", "it is ***")


def test_a_key_is_hidden_however_json_spells_it(
    openai_server: OpenAIServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = 'sk/not+a"real\\key-J012'
    monkeypatch.setenv(VARIABLE, key)
    plain = json.dumps(key)[1:-1]
    for spelt in (plain, plain.replace("/", "\\/"), plain.replace("J", "\\u004A"), plain.replace("J", "\\u004a")):
        raw = f'{{"error": {{"message": "wrong key: {spelt}."}}}}'.encode()
        assert key in json.loads(raw)["error"]["message"]
        openai_server.faults = [body(raw, 401)]
        with pytest.raises(EngineError, match=r"wrong key: \*\*\*\.;"):
            ask(connect(), "a")


def test_a_key_that_no_header_can_carry(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "sk-secret\nX-Evil: 1")
    with pytest.raises(EngineError, match="the environment variable OPENAI_API_KEY holds characters") as caught:
        ask(connect(), "a")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "http://me:secret@host/v1"},
        {"base_url": "https://host/v1?api-key=secret"},
        {"base_url": "ftp://host"},
        {"base_url": "https://host/v1/chat/completions/"},
        {"api_key_env": "sk-secret"},
        {"extra_body": {"messages": [], "n": 3}},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_options_that_are_refused_without_repeating_them(wrong: dict[str, Any]) -> None:
    from paraclip_core.settings import parse_settings

    with pytest.raises(ConfigError) as caught:
        parse_settings({"paraphrase": {"openai": wrong}})
    assert "secret" not in str(caught.value)
    assert f"paraphrase.openai.{next(iter(wrong))}" in str(caught.value)


def test_the_model_id_follows_what_decides_the_answers() -> None:
    def model(**options: Any) -> str:
        chosen = ParaphraseOptions(engine="openai", model="org/smol", openai=OpenAIOptions(**options))
        return make_engine(chosen).model

    assert model() == model(base_url="http://elsewhere/v1", concurrency=2, api_key_env="OTHER") == "org/smol"
    assert model(revision="2026-01") == "org/smol@2026-01"
    ways = [{"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2}]
    assert len({model(extra_body=way) for way in ways}) == 2
    with pytest.raises(ConfigError, match=r"needs paraphrase.model"):
        make_engine(ParaphraseOptions(engine="openai"))


def test_it_works_inside_a_running_loop_and_again_after_closing(connect: Connect) -> None:
    engine = connect()

    async def inside() -> list[Completion]:
        return ask(engine, "a")

    expected = asyncio.run(inside())
    engine.close()
    engine.close()
    assert ask(engine, "a") == expected


def test_an_interrupt_ends_the_requests_under_way(openai_server: OpenAIServer, connect: Connect) -> None:
    openai_server.faults = [hang] * 4
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    engine = connect(timeout_seconds=60)
    with pytest.raises(KeyboardInterrupt):
        ask(engine, "a", "b")
    engine.close()
    assert time.monotonic() - began < 50


def test_what_nobody_takes_is_not_asked_for(openai_server: OpenAIServer, connect: Connect) -> None:
    """A caller that is busy keeping answers for a long time must not have more of them waiting in memory."""
    stream = connect(concurrency=4).stream(numbered(200), TWO)
    next(stream)
    before = -1
    while len(openai_server.asked) != before:
        before = len(openai_server.asked)
        time.sleep(0.5)
    # One was taken, four wait, and as many as were under way meanwhile.
    assert 5 <= before <= 1 + 4 + 4
    assert len(list(stream)) == 199


def test_answers_of_an_unfinished_chunk_are_kept_and_never_asked_for_again(
    openai_server: OpenAIServer,
    connect: Connect,
    paraphrasing: Any,
    elsewhere: Any,
    rows_of: Callable[[list[str]], pa.RecordBatch],
) -> None:
    captions = [f"photo {number} of a red dog on the beach" for number in range(120)]
    options = OFF.model_copy(update={"sampling": TWO, "chunk": 50})

    def step(over: Any = paraphrasing, **more: Any) -> pa.Table:
        return over.run([rows_of(captions)], connect(retries=1, concurrency=4, **more), options).rows

    def die_after(asked: dict[str, Any]) -> Any:
        return well(asked) if sum(openai_server.answered.values()) < 70 else reset

    well, openai_server.answer = openai_server.answer, die_after
    with pytest.raises(EngineError, match="in a row failed"):
        step()
    # One whole chunk and a part of the second.
    assert 70 <= len(completions(paraphrasing)) == sum(openai_server.answered.values()) < 76
    openai_server.answer = well
    with pytest.raises(BudgetError):
        step(max_spend=60, **PRICES)
    assert len(completions(paraphrasing)) == sum(openai_server.answered.values()) < 100
    rows = step()
    assert rows.num_rows == 120
    assert len(completions(paraphrasing)) == sum(openai_server.answered.values()) == 120
    assert set(openai_server.answered.values()) == {1}
    assert step(elsewhere) == rows
    assert completions(elsewhere) == completions(paraphrasing)


def test_single_draws_of_an_unfinished_prompt_are_kept_and_never_asked_for_again(
    openai_server: OpenAIServer,
    connect: Connect,
    paraphrasing: Any,
    elsewhere: Any,
    rows_of: Callable[[list[str]], pa.RecordBatch],
) -> None:
    captions = [f"photo {number} of a red dog on the beach" for number in range(12)]
    options = OFF.model_copy(update={"sampling": TWO.model_copy(update={"n": 4}), "chunk": 50})

    def step(over: Any = paraphrasing) -> pa.Table:
        engine = connect(retries=0, max_failures=1, concurrency=4, ask_for_n=False)
        return over.run([rows_of(captions)], engine, options).rows

    def die_after(asked: dict[str, Any]) -> Any:
        return well(asked) if sum(openai_server.answered.values()) < limits[0] else reset

    well, openai_server.answer = openai_server.answer, die_after
    limits = [6, 10]
    while limits:
        with pytest.raises(EngineError, match="in a row failed"):
            step()
        limits.pop(0)
    openai_server.answer = well
    rows = step()
    assert rows.num_rows == 12
    # Every draw was asked for once, and its ten tokens were counted once.
    assert sum(openai_server.answered.values()) == len(openai_server.answered) == 4 * 12
    assert sum(tokens for tokens, _ in completions(paraphrasing).values()) == 10 * 4 * 12
    assert step(elsewhere) == rows
    assert completions(elsewhere).keys() <= completions(paraphrasing).keys()
