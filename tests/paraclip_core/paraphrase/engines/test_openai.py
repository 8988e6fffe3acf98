"""The engine `openai` against a real server that misbehaves: what it sends, forgives, keeps, pays and never shows."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.config import ParaphraseOptions
from paraclip_core.errors import AwayError, BudgetError, ConfigError, EngineError, RefusedError
from paraclip_core.paraphrase.engines import Completion, EngineContext, EngineOptions, Prompt, SamplingOptions
from paraclip_core.paraphrase.engines.chat import draw_seed, read_completion
from paraclip_core.paraphrase.engines.openai import FAILURES_IN_A_ROW, OpenAIEngine, OpenAIOptions
from paraclip_core.paraphrase.filter_options import FilterOptions
from paraclip_core.paraphrase.paraphraser import make_engine
from paraclip_core.paraphrase.prompts import FEW_SHOT, PAPER
from paraclip_core.settings import parse_settings
from tests.kit.openai_server import Fault, OpenAIServer, body, hang, nonsense, reset, status, well, words_of
from tests.kit.waiting import eventually

TWO = SamplingOptions(n=2, temperature=0.7, top_p=0.9, max_tokens=24)
KEY = "sk-not-a-real-key-0123456789"
Connect = Callable[..., OpenAIEngine]


@pytest.fixture
def connect(openai_server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Engines on the server, quick to try again, closed at the end."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("INITIAL_RETRY_DELAY", "MAX_RETRY_DELAY"):
        monkeypatch.setattr(f"openai._base_client.{name}", 0.01)
    engines: list[OpenAIEngine] = []

    def engine(model: str = "smol", **options: Any) -> OpenAIEngine:
        chosen = OpenAIOptions(**{"base_url": openai_server.url, "retries": 3} | options)
        engines.append(OpenAIEngine(EngineOptions(chosen, model), EngineContext()))
        return engines[-1]

    yield engine
    for each in engines:
        each.close()


def prompts_of(texts: list[str], seed: int = 0) -> list[Prompt]:
    return [Prompt((("user", text),), text, 1, seed) for text in texts]


def numbered(count: int) -> list[Prompt]:
    return prompts_of([f"caption {number}" for number in range(count)])


def ask(engine: OpenAIEngine, *texts: str, seed: int = 0, sampling: SamplingOptions = TWO) -> list[Completion]:
    return engine.generate(prompts_of(list(texts), seed), sampling)


def streamed(
    engine: OpenAIEngine, prompts: list[Prompt], sampling: SamplingOptions = TWO
) -> tuple[dict[int, Completion], EngineError]:
    """The completions that come before the engine fails, which it must, and its error."""
    completions: dict[int, Completion] = {}
    with pytest.raises(EngineError) as caught:
        completions.update(item for item in engine.stream(prompts, sampling) if item)
    return completions, caught.value


def first_words(completions: list[Completion]) -> list[str]:
    return [completion.texts[0].rsplit(" ", 2)[0] for completion in completions]


FLAGGED = status(400, "Your prompt was flagged by our usage guidelines.")
LIMITED = status(429, "slow down")
NEVER = {20, 21, 22, 23, 58, 59}
TEN = set(range(10))
Answer = Callable[[int, int], Any]
"""Number of the prompt, and of the request from 1 → a Fault, or None to answer well."""


def on(prompts: set[int], fault: Fault) -> Answer:
    return lambda prompt, request: fault if prompt in prompts else None


def after(requests: int, fault: Fault) -> Answer:
    return lambda prompt, request: fault if request > requests else None


@dataclass(frozen=True)
class Case:
    answer: Answer
    rejects: set[int] = field(default_factory=set)
    """Prompts with a completion without texts."""
    error: type[EngineError] | None = None
    message: str = ""
    answered: int = 60
    """Prompts with texts."""
    most_asked: int = 10_000
    options: dict[str, Any] = field(default_factory=dict)
    strict: bool = False


STOPPED = 40 + FAILURES_IN_A_ROW
ONE = {"concurrency": 1}
SILENT = {"choices": [{"message": {"content": None}, "finish_reason": "length"}] * 2}
CASES = {
    # A prompt that is declined in known words is a reject, however many there are.
    "declines some": Case(on(NEVER, FLAGGED), NEVER, answered=54),
    "declines the first": Case(on(TEN, status(403, "no", code="content_filter")), TEN, answered=50, options=ONE),
    "declines all": Case(after(0, FLAGGED), set(range(60)), answered=0),
    # So is one that is refused or fails while others are answered.
    "refuses some": Case(on(NEVER, status(400, "not this one")), NEVER, answered=54),
    "breaks on some": Case(on(NEVER, status(500)), NEVER, answered=54, options={"retries": 1}),
    "nonsense for some": Case(on(NEVER, body({"choices": []})), NEVER, answered=54),
    # A busy server says nothing about a prompt.
    "limits one": Case(on({7}, LIMITED), set(), AwayError, r"slow down.*requests_per_minute.*'caption 7'", 59),
    "away for one": Case(on({7}, status(503)), set(), AwayError, r"1 of 60 prompts have no answer.*run again", 59),
    "limits most": Case(lambda _, n: n % 3 and LIMITED, set(), AwayError, "requests_per_minute", 20, 60),
    # Failures in a row stop the run, and what was answered is kept.
    "refuses all": Case(after(0, status(400, "unknown field top_p")), set(), RefusedError, "field top_p", 0, 8),
    "refuses all, as FastAPI": Case(after(0, body({"detail": "extra"}, 422)), set(), RefusedError, "extra", 0, 8),
    "refuses one, strictly": Case(on({7}, status(400, "too long")), set(), RefusedError, "too long", 7, 8, strict=True),
    "refuses from then on": Case(after(40, status(403, "no")), set(), RefusedError, "no", 40, STOPPED),
    "limits from then on": Case(after(40, LIMITED), set(), AwayError, "slow down", 40, STOPPED),
    "gone": Case(after(40, reset), set(), AwayError, "does not answer", 40, STOPPED),
    "broken": Case(after(40, status(500)), set(), AwayError, "status 500.*8 of 60", 40, 40 + 8 * 3, {"retries": 2}),
    # A model that never says a word; among answers with words such ones are answers, too.
    "silent": Case(after(0, body(SILENT)), set(), EngineError, "max_tokens", 8, 8),
    "silent after one": Case(after(1, body(SILENT)), options=ONE),
    # No prompt can be answered so.
    "no key": Case(after(0, status(401, "a key")), set(), EngineError, "a key.*OPENAI_API_KEY; neither holds", 0, 1),
    "no model": Case(after(0, status(404, "no smol")), set(), EngineError, "no smol.*openai.base_url", 0, 1),
    "no credit": Case(
        after(3, status(429, "pay first", code="insufficient_quota")), set(), EngineError, "pay.*check the acc", 3, 4
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_becomes_of_a_servers_answers(
    name: str, openai_server: OpenAIServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    case = CASES[name]
    prompts, one_at_a_time = numbered(60), ONE if case.error else {"concurrency": 4}

    def answer(asked: dict[str, Any]) -> Any:
        return case.answer(int(words_of(asked).split()[1]), len(openai_server.asked)) or well(asked)

    openai_server.answer = answer
    engine = connect(**{"retries": 0} | one_at_a_time | case.options)
    engine.strict = case.strict
    if case.error is None:
        completions = dict(enumerate(engine.generate(prompts, TWO)))
        told = f"{len(case.rejects)} of 60 prompts got no answer ('caption {min(case.rejects, default='')}'"
        assert (told in caplog.text) == bool(case.rejects)
    else:
        completions, error = streamed(engine, prompts)
        assert type(error) is case.error
        with pytest.raises(EngineError, match=case.message):
            raise error
    assert {number for number, completion in completions.items() if not completion.texts} == case.rejects
    assert len(completions) - len(case.rejects) == case.answered
    assert len(openai_server.asked) <= case.most_asked


def test_a_declined_caption_is_a_reject_and_not_requested_again(
    openai_server: OpenAIServer, connect: Connect, paraphrasing: Any, rows_of: Callable[[list[str]], Any]
) -> None:
    captions = [f"photo {number} of a red dog" for number in range(12)]
    options = ParaphraseOptions(engine="openai", model="smol", filters=FilterOptions(preset="off"), sampling=TWO)
    openai_server.answer = lambda asked: FLAGGED if "photo 0 " in words_of(asked) else well(asked)
    for generated in (12, 0):
        step = paraphrasing.run([rows_of(captions)], connect(), options)
        assert (step.rows.num_rows, step.rounds.counts.generated) == (11, generated)
        assert [(row["input"], row["reason"]) for row in step.rejects.to_pylist()] == [(captions[0], "no_paraphrase")]


PASSING: dict[str, Fault] = {
    "busy": status(429, "slow down", {"Retry-After": "0.1"}),
    "away": status(503),
    "bad gateway": body(b"<html>502", 502),
    "reset": reset,
    "hang": hang,
    "half a body": nonsense(b'{"choices": [{"mess', 500),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_may_pass_is_tried_again(
    fault: Fault, openai_server: OpenAIServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ask(connect(), "a", "b")
    openai_server.faults = [fault, fault]
    monkeypatch.setattr("paraclip_core.paraphrase.engines.openai_client.TIMEOUT_SECONDS", 1.0)
    assert ask(connect(), "a", "b") == expected
    assert len(openai_server.asked) == 2 + 2 + 2


NONSENSE: dict[str, Any] = {
    "error page": b"<!DOCTYPE html><p>maintenance</p>",
    "error object": {"error": {"message": "upstream is down", "code": 502}},
    "nothing": b"",
    "deep JSON": b"[" * 100_000,
    "no text": {"choices": [{"index": 0}]},
}


@pytest.mark.parametrize("content", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_requested_once_more(content: Any, openai_server: OpenAIServer, connect: Connect) -> None:
    openai_server.faults = [body(content)]
    assert first_words(ask(connect(), "a")) == ["well a"]
    openai_server.faults = [body(content)] * 2
    with pytest.raises(AwayError, match=r"invalid response.*'a'"):
        ask(connect(), "a")


def test_draws_that_come_one_at_a_time(openai_server: OpenAIServer, connect: Connect) -> None:
    openai_server.answer = lambda asked: well({**asked, "n": 1})
    three = TWO.model_copy(update={"n": 3})
    completions = ask(connect(), "a", "b", "c", sampling=three)
    assert [len(set(completion.texts)) for completion in completions] == [3, 3, 3]
    assert {completion.prompt_tokens for completion in completions} == {30}
    openai_server.answer = lambda asked: status(400, "only one choice") if asked.get("n") else well(asked)
    assert ask(connect(extra_body={"n": None}), "a", "b", "c", sampling=three) == completions
    # Those before one that fails are kept.
    seeds = dict[str, int]()

    def first_only(asked: dict[str, Any]) -> Any:
        first = seeds.setdefault(words_of(asked), asked["seed"]) == asked["seed"]
        return well({**asked, "n": 1}) if first or words_of(asked) != "caption 3" else status(500)

    openai_server.answer = first_only
    assert [len(done.texts) for done in connect(retries=0).generate(numbered(6), TWO)] == [2, 2, 2, 1, 2, 2]


def test_answers_come_in_the_order_of_the_prompts(openai_server: OpenAIServer, connect: Connect) -> None:
    overtaken, waited = threading.Event(), []

    def slow_first(asked: dict[str, Any]) -> Any:
        if words_of(asked) == "t0":
            waited.append(overtaken.wait(30))
        else:
            overtaken.set()
        return well(asked)

    openai_server.answer = slow_first
    completions = ask(connect(), *(f"t{number}" for number in range(30)))
    assert first_words(completions) == [f"well t{number}" for number in range(30)]
    assert all(completion.texts[1].endswith(" 1") for completion in completions)
    assert {(completion.prompt_tokens, completion.completion_tokens) for completion in completions} == {(10, 10)}
    assert waited == [True]


def test_answers_do_not_depend_on_what_is_requested_beside_them(connect: Connect) -> None:
    engine = connect()
    together = ask(engine, "a", "b", "c")
    assert ask(engine, "c", "b") == together[:0:-1]
    assert ask(connect(concurrency=1), "b") == together[1:2]
    assert ask(engine, "b", seed=1) != together[1:2]


def test_what_is_sent(openai_server: OpenAIServer, connect: Connect) -> None:
    extra = {"reasoning_effort": "low", "max_tokens": None, "max_completion_tokens": 99, "seed": None}
    engine = connect(extra_body=extra)
    few_shot = Prompt(FEW_SHOT[1].messages("a dog"), "a dog", 1, 0)
    engine.generate([few_shot, Prompt(PAPER[1].messages("a dog"), "a dog", 1, 0)], TWO)
    engine.generate([few_shot], TWO.model_copy(update={"temperature": 0.0}))
    sampled, paper, greedy = sorted(openai_server.asked, key=lambda asked: (-asked["temperature"], -len(asked)))
    assert (sampled["model"], sampled["temperature"], sampled["top_p"], sampled["n"]) == ("smol", 0.7, 0.9, 2)
    assert (sampled["reasoning_effort"], sampled["max_completion_tokens"]) == ("low", 99)
    assert "max_tokens" not in sampled and "seed" not in sampled
    assert [turn["role"] for turn in sampled["messages"][-3:]] == ["user", "assistant", "user"]
    # After examples an answer is one line; a model that follows instructions may begin with an empty one.
    assert (sampled["stop"], paper.get("stop")) == (["\n"], None)
    assert "top_p" not in greedy and "n" not in greedy


def test_concurrency_is_used_and_kept(openai_server: OpenAIServer, connect: Connect) -> None:
    def patient(asked: dict[str, Any]) -> Any:
        eventually(lambda: openai_server.most_under_way >= 8, seconds=100)
        return well(asked)

    openai_server.answer = patient
    connect(concurrency=8).generate(numbered(24), TWO)
    assert openai_server.most_under_way == 8


def test_what_nobody_takes_is_not_requested(openai_server: OpenAIServer, connect: Connect) -> None:
    """A caller that is busy keeping answers for a long time must not have more of them waiting in memory."""
    stream = connect(concurrency=4).stream(numbered(200), TWO)
    next(stream)
    before = -1
    while len(openai_server.asked) != before:
        before = len(openai_server.asked)
        time.sleep(0.3)
    # One was taken, four wait, and as many were in flight meanwhile.
    assert 5 <= before <= 1 + 4 + 4
    assert len(list(stream)) == 199


def test_a_limit_per_minute_spaces_requests_out(openai_server: OpenAIServer, connect: Connect) -> None:
    began = time.monotonic()
    connect(requests_per_minute=1200).generate(numbered(11), TWO)
    assert 0.5 <= max(openai_server.times) - began < 50


def test_an_interrupt_ends_the_requests_in_flight(openai_server: OpenAIServer, connect: Connect) -> None:
    openai_server.faults = [hang] * 4
    engine = connect()

    def interrupt() -> None:
        eventually(lambda: openai_server.under_way == 2, seconds=100)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ask(engine, "a", "b")
    engine.close()
    assert time.monotonic() - began < 50


def test_it_works_inside_a_running_loop_and_again_after_closing(connect: Connect) -> None:
    engine = connect()

    async def inside() -> list[Completion]:
        return ask(engine, "a")

    expected = asyncio.run(inside())
    engine.close()
    engine.close()
    assert ask(engine, "a") == expected


PRICES = {"price_per_million_prompt_tokens": 100_000, "price_per_million_completion_tokens": 200_000}
"""An answer of the server's has 10 + 2 · 5 tokens: 1 + 2."""
SHORT = TWO.model_copy(update={"max_tokens": 6})


def test_the_spending_cap_is_never_passed_and_everything_is_kept(openai_server: OpenAIServer, connect: Connect) -> None:
    engine = connect(max_spend=100, **PRICES)
    completions, error = streamed(engine, numbered(200), SHORT)
    assert isinstance(error, BudgetError) and "max_spend=100" in str(error)
    count = len(completions)
    assert count == sum(openai_server.answered.values()) == len(openai_server.asked)
    assert engine.spent == pytest.approx(3 * count)
    assert 90 < engine.spent <= 100
    # A later run knows what was spent before it, and continues when the cap is raised.
    again = connect(max_spend=100, **PRICES)
    again.charge(10 * count, 10 * count)
    assert isinstance(streamed(again, numbered(1), SHORT)[1], BudgetError)
    raised = connect(max_spend=110, **PRICES)
    raised.charge(10 * count, 10 * count)
    assert len(raised.generate(numbered(1), SHORT)) == 1


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"base_url": "http://me:secret@host/v1"}, "base_url"),
    ({"base_url": "https://host/v1?api-key=secret"}, "base_url"),
    ({"base_url": "https://host/v1/chat/completions/"}, "base_url"),
    ({"extra_body": {"messages": [], "n": 3}}, "extra_body"),
    ({"max_spend": 1}, "max_spend needs price_per_million"),
    (PRICES | {"max_spend": 1, "extra_body": {"max_tokens": None}}, "max_completion_tokens"),
    (PRICES | {"max_spend": 1, "extra_body": {"max_tokens": None, "max_completion_tokens": 9}}, ""),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_options_that_cannot_work_are_errors_that_repeat_no_secret(options: dict[str, Any], message: str) -> None:
    if not message:
        parse_settings({"paraphrase": {"openai": options}})
        return
    with pytest.raises(ConfigError, match=rf"paraphrase\.openai.*{message}") as caught:
        parse_settings({"paraphrase": {"openai": options}})
    assert "secret" not in str(caught.value)


FOLDER, NULL = "a folder", "/dev/null"
KEYS: list[tuple[str | None, str | bytes | None, str]] = [
    (None, None, "none"),
    (None, b"sk-of-the-file\r\n", "sk-of-the-file"),
    # As compose sets a variable that its own environment lacks, and mounts what it has no file for.
    ("", b"sk-of-the-file", "sk-of-the-file"),
    (None, NULL, "none"),
    (f" {KEY}\n", b"sk-of-the-file", KEY),
    (KEY, FOLDER, KEY),
    # What Docker makes of a bind mount whose file is not there.
    (None, FOLDER, "error: cannot be read: Is a directory; .*variable MY_KEY"),
    (None, b"sk-secret\nX-Evil: 1", "error: MY_KEY holds characters"),
    (None, b"\x80\x04sk-secret", "error: MY_KEY holds characters"),
    (None, "sk-secret-ключ".encode(), "error: MY_KEY holds characters"),
    ("sk-secret\nX-Evil: 1", None, "error: variable MY_KEY holds characters"),
]


@pytest.mark.parametrize(("variable", "file", "sent"), KEYS)
def test_the_key_comes_from_the_environment_or_else_from_a_file(
    variable: str | None,
    file: str | bytes | None,
    sent: str,
    openai_server: OpenAIServer,
    connect: Connect,
    secret: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if variable is not None:
        monkeypatch.setenv("MY_KEY", variable)
    if file == FOLDER:
        secret.mkdir()
    elif file == NULL:
        secret.symlink_to(NULL)
    elif isinstance(file, bytes):
        secret.write_bytes(file)
    if sent.startswith("error: "):
        with pytest.raises(EngineError, match=sent.removeprefix("error: ")) as caught:
            ask(connect(api_key_env="MY_KEY"), "a")
        assert "sk-" not in str(caught.value)
    else:
        ask(connect(api_key_env="MY_KEY"), "a")
        assert openai_server.keys == {f"Bearer {sent}"}


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the secret MY_KEY, which is not there yet, in a container's folder of secrets."""
    monkeypatch.setattr("paraclip_core.paraphrase.engines.openai_client.SECRETS", tmp_path / "secrets")
    (tmp_path / "secrets").mkdir()
    return tmp_path / "secrets" / "MY_KEY"


def test_the_key_is_shown_nowhere(
    openai_server: OpenAIServer, connect: Connect, secret: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "paraclip_core")
    secret.write_text(f"{KEY}\n")
    engine = connect(api_key_env="MY_KEY")
    ask(engine, "a")
    # What was sent is what a server may repeat.
    secret.write_text("sk-the-next")
    openai_server.faults = [status(500, f"cannot use {KEY}"), status(401, f"Incorrect key: {KEY}")]
    with pytest.raises(EngineError, match=rf"Incorrect key: \*\*\*.*{secret}$") as caught:
        ask(engine, "b")
    assert openai_server.keys == {f"Bearer {KEY}"}
    assert not any(KEY in text for text in (repr(caught.value), repr(engine), engine.model, caplog.text))


def test_the_model_id_follows_what_decides_the_answers() -> None:
    def model(**options: Any) -> str:
        chosen = ParaphraseOptions(engine="openai", model="org/smol", openai=OpenAIOptions(**options))
        return make_engine(chosen).model

    assert model() == model(base_url="http://elsewhere/v1", concurrency=2, api_key_env="OTHER") == "org/smol"
    ways = [{"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2}]
    assert len({model(extra_body=way) for way in ways}) == 2
    with pytest.raises(ConfigError, match=r"needs paraphrase.model"):
        make_engine(ParaphraseOptions(engine="openai"))


def test_the_check_finds_a_model_under_its_names(openai_server: OpenAIServer, connect: Connect) -> None:
    connect("smol").check()
    with pytest.raises(EngineError, match=r"'smol-2', but smol, other; set paraphrase.model"):
        connect("smol-2").check()
    openai_server.models = [{"id": "llama3:latest", "owned_by": "library"}]
    connect("llama3").check()
    openai_server.models = [{"id": "/models/some.gguf", "owned_by": "llamacpp"}]
    connect("any name").check()
    # Not every server has a list.
    for models in ([], None, "nonsense", [1]):
        openai_server.models = models
        connect("any name").check()
    openai_server.refuses = 401
    with pytest.raises(EngineError, match="who are you"):
        connect().check()
    assert openai_server.asked == []
    openai_server.stop()
    with pytest.raises(AwayError, match=r"cannot be reached: .*base_url"):
        connect(retries=0).check()


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
NAMES = st.sampled_from(["choices", "message", "content", "index", "usage", "prompt_tokens"])
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5), max_leaves=20
)
CHOICE = st.dictionaries(NAMES, JSON, max_size=3) | st.fixed_dictionaries(
    {"message": st.fixed_dictionaries({"content": JSON})}, optional={"index": LEAVES}
)


@given(JSON | st.fixed_dictionaries({"choices": st.lists(CHOICE, max_size=5), "usage": JSON}), st.integers(1, 4))
def test_any_json_is_a_completion_or_nonsense(content: Any, n: int) -> None:
    try:
        completion = read_completion(json.loads(json.dumps(content)), n, 7)
    except ValueError as error:
        assert str(error).isprintable()
        return
    assert 1 <= len(completion.texts) <= n and all(isinstance(text, str) for text in completion.texts)
    assert completion.prompt_tokens >= 0 and completion.completion_tokens >= 0


@given(st.permutations(range(5)), st.integers(1, 5))
def test_choices_come_in_the_order_of_their_index(order: list[int], n: int) -> None:
    content = {"choices": [{"index": i, "message": {"content": str(i)}} for i in order]}
    assert read_completion(content, n, 7) == Completion(tuple(str(i) for i in range(n)), 7, n)


@given(st.text(max_size=20), st.text(max_size=20), st.integers(0, 5), st.integers(0, 2**31))
def test_seeds_are_of_the_text_the_draw_and_the_run(text: str, other_text: str, draw: int, seed: int) -> None:
    def drawn(text: str, seed: int, draw: int, *messages: tuple[str, str]) -> int:
        return draw_seed(Prompt(messages, text, 1, seed), draw)

    assert 0 <= drawn(text, seed, draw) < 2**31
    assert drawn(text, seed, draw) == drawn(text, seed, draw, ("user", "elsewhere"))
    assert (drawn(text, seed, draw) == drawn(other_text, seed, draw)) == (text == other_text)
    assert drawn(text, seed, draw) not in (drawn(text, seed + 1, draw), drawn(text, seed, draw + 1))
