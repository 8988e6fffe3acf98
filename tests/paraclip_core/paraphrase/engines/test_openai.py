"""The engine `openai` against a real server that misbehaves: what it sends, forgives, keeps, pays and never shows."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.config import ParaphraseOptions
from paraclip_core.demo.synonyms import THESAURUS
from paraclip_core.errors import AwayError, BudgetError, ConfigError, EngineError
from paraclip_core.paraphrase.engines import Completion, Prompt
from paraclip_core.paraphrase.engines.openai import (
    FAILURES_IN_A_ROW,
    OpenAIOptions,
    RefusedError,
    draw_seed,
    read_completion,
)
from paraclip_core.paraphrase.filter_options import FilterOptions
from paraclip_core.paraphrase.paraphraser import make_engine
from paraclip_core.paraphrase.prompts import FEW_SHOT, PAPER
from paraclip_core.settings import parse_settings
from tests.kit.openai_asking import KEY, TWO, Connect, ask, first_words, numbered, streamed
from tests.kit.openai_server import Fault, OpenAIServer, body, hang, nonsense, reset, status, well, words_of
from tests.kit.waiting import eventually


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
    # Plain text to go on with is a user's turn.
    openai_server.asked.clear()
    connect().generate([Prompt(THESAURUS.messages("fast"), "fast", 0, 0)], TWO)
    (plain,) = openai_server.asked
    assert plain["messages"][0]["content"].endswith("\nfast:") and plain["stop"] == ["\n"]


CUT = nonsense(b'{"choices": [{"mess', 500)


@pytest.mark.parametrize(
    "fault",
    [status(429, "slow down", {"Retry-After": "0.1"}), status(503), body(b"<html>502", 502), reset, hang, CUT],
    ids=["busy", "away", "bad gateway", "reset", "hang", "half a body"],
)
def test_what_may_pass_is_tried_again(
    fault: Fault, openai_server: OpenAIServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ask(connect(), "a", "b")
    openai_server.faults = [fault, fault]
    monkeypatch.setattr("paraclip_core.paraphrase.engines.openai.TIMEOUT_SECONDS", 1.0)
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
def test_nonsense_is_requested_once_more_and_then_told(
    content: Any, openai_server: OpenAIServer, connect: Connect
) -> None:
    openai_server.faults = [body(content)]
    assert first_words(ask(connect(), "a")) == ["well a"]
    openai_server.answer = lambda asked: body(content)
    with pytest.raises(AwayError, match=r"invalid response.*'a'"):
        ask(connect(), "a")


REFUSED: dict[str, tuple[Fault, str]] = {
    "no key": (status(401, "you must provide a key"), r"must provide.*OPENAI_API_KEY; neither holds one"),
    "unknown model": (status(404, "no model smol-2"), r"no model smol-2.*paraphrase\.openai\.base_url"),
    "wrong field": (status(400, "unknown field top_p"), r"status 400\): .*unknown field top_p"),
    "FastAPI's words": (body({"detail": [{"loc": "body", "msg": "extra"}]}, 422), "extra"),
    "no credit": (status(429, "pay first", code="insufficient_quota"), "pay first.*check the account"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_server_that_refuses_all_ends_the_run(case: str, openai_server: OpenAIServer, connect: Connect) -> None:
    fault, message = REFUSED[case]
    openai_server.answer = lambda asked: fault
    completions, error = streamed(connect(concurrency=1, retries=0), numbered(50))
    assert completions == {} and len(openai_server.asked) <= FAILURES_IN_A_ROW + 1
    with pytest.raises(EngineError, match=message):
        raise error


def test_the_run_ends_when_the_server_is_gone(openai_server: OpenAIServer, connect: Connect) -> None:
    openai_server.answer = lambda asked: well(asked) if len(openai_server.asked) <= 40 else reset
    completions, error = streamed(connect(retries=2, concurrency=4), numbered(500))
    assert isinstance(error, AwayError) and "run again" in str(error)
    assert len(completions) == 40
    # Three attempts each, and not five hundred.
    assert len(openai_server.asked) <= 40 + (FAILURES_IN_A_ROW + 5) * 3
    openai_server.stop()
    with pytest.raises(AwayError, match="does not answer"):
        ask(connect(retries=0), "a")


POISON: dict[str, Fault] = {
    "refused": status(400, "Your prompt was flagged by our usage guidelines."),
    "always broken": status(500),
}


@pytest.mark.parametrize("poisoned", [set(range(10)), {20, 21, 22, 23, 58, 59}], ids=str)
@pytest.mark.parametrize("fault", POISON.values(), ids=POISON)
def test_prompts_that_the_server_never_answers_do_not_stop_the_others(
    fault: Fault, poisoned: set[int], openai_server: OpenAIServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    bad = {f"caption {number}" for number in poisoned}
    openai_server.answer = lambda asked: fault if words_of(asked) in bad else well(asked)
    completions = connect(retries=1, concurrency=4).generate(numbered(60), TWO)
    assert {number for number, completion in enumerate(completions) if not completion.texts} == poisoned
    assert f"{len(poisoned)} of 60 prompts got no answer ('caption {min(poisoned)}'" in caplog.text
    # They are all that is left: whoever asks for them again is answered, too.
    left = connect(retries=1, concurrency=4).generate([numbered(60)[number] for number in sorted(poisoned)], TWO)
    assert not any(completion.texts for completion in left)


def test_a_rate_limit_ends_the_run_and_rejects_no_prompt(openai_server: OpenAIServer, connect: Connect) -> None:
    """Even if others are answered meanwhile."""
    limited = status(429, "slow down")
    openai_server.answer = lambda asked: well(asked) if len(openai_server.asked) % 3 == 0 else limited
    completions, error = streamed(connect(retries=0, concurrency=1), numbered(60))
    assert isinstance(error, AwayError) and "requests_per_minute" in str(error) and "slow down" in str(error)
    assert completions and all(completion.texts for completion in completions.values())


def test_a_poisoned_caption_becomes_a_reject_and_is_not_requested_again(
    openai_server: OpenAIServer, connect: Connect, paraphrasing: Any, rows_of: Callable[[list[str]], pa.RecordBatch]
) -> None:
    captions = [f"photo {number} of a red dog on the beach" for number in range(12)]
    options = OFF.model_copy(update={"sampling": TWO})
    openai_server.answer = lambda asked: POISON["refused"] if "photo 0 " in words_of(asked) else well(asked)
    generated = []
    for _ in range(2):
        step = paraphrasing.run([rows_of(captions)], connect(), options)
        assert step.rows.num_rows == 11
        (rejected,) = step.rejects.to_pylist()
        assert (rejected["input"], rejected["reason"]) == (captions[0], "no_paraphrase")
        generated.append(step.rounds.counts.generated)
    assert generated == [12, 0]


def test_a_server_that_refuses_all_from_some_time_on_ends_the_run(
    openai_server: OpenAIServer, connect: Connect
) -> None:
    openai_server.answer = lambda asked: well(asked) if sum(openai_server.answered.values()) < 40 else POISON["refused"]
    completions, error = streamed(connect(concurrency=1), numbered(500))
    assert type(error) is EngineError and "flagged" in str(error)
    # Nothing of that is taken for a refused prompt.
    assert len(completions) == 40 and all(completion.texts for completion in completions.values())


def test_a_refused_prompt_ends_a_strict_run(openai_server: OpenAIServer, connect: Connect) -> None:
    openai_server.answer = lambda asked: POISON["refused"] if words_of(asked) == "caption 7" else well(asked)
    engine = connect(concurrency=1)
    engine.strict = True
    completions, error = streamed(engine, numbered(20))
    assert isinstance(error, RefusedError) and len(completions) == 7


def test_a_server_that_gives_one_answer_at_a_time(openai_server: OpenAIServer, connect: Connect) -> None:
    openai_server.answer = lambda asked: well({**asked, "n": 1})
    three = TWO.model_copy(update={"n": 3})
    completions = ask(connect(), "a", "b", "c", sampling=three)
    assert [len(set(completion.texts)) for completion in completions] == [3, 3, 3]
    assert {completion.prompt_tokens for completion in completions} == {30}
    openai_server.answer = lambda asked: status(400, "only one choice") if asked.get("n") else well(asked)
    assert ask(connect(extra_body={"n": None}), "a", "b", "c", sampling=three) == completions


def test_draws_before_one_that_fails_are_kept(openai_server: OpenAIServer, connect: Connect) -> None:
    seeds = dict[str, int]()

    def first_only(asked: dict[str, Any]) -> Any:
        first = seeds.setdefault(words_of(asked), asked["seed"]) == asked["seed"]
        return well({**asked, "n": 1}) if first or words_of(asked) != "caption 3" else status(500)

    openai_server.answer = first_only
    completions = connect(retries=0).generate(numbered(8), TWO)
    assert [len(completion.texts) for completion in completions] == [2, 2, 2, 1, 2, 2, 2, 2]


def test_a_model_that_never_says_a_word_is_an_error(openai_server: OpenAIServer, connect: Connect) -> None:
    openai_server.answer = lambda asked: {"choices": [{"message": {"content": None}, "finish_reason": "length"}] * 2}
    completions, error = streamed(connect(concurrency=1), numbered(50))
    assert "max_tokens" in str(error)
    assert len(completions) == len(openai_server.asked) == 16


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
        time.sleep(0.5)
    # One was taken, four wait, and as many as were under way meanwhile.
    assert 5 <= before <= 1 + 4 + 4
    assert len(list(stream)) == 199


def test_a_limit_per_minute_spaces_requests_out(openai_server: OpenAIServer, connect: Connect) -> None:
    began = time.monotonic()
    connect(requests_per_minute=1200).generate(numbered(11), TWO)
    assert 0.5 <= max(openai_server.times) - began < 50


def test_an_interrupt_ends_the_requests_under_way(openai_server: OpenAIServer, connect: Connect) -> None:
    openai_server.faults = [hang] * 4
    engine = connect()
    # It connects; an interrupt before that would find no request.
    engine.check()
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
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


def test_a_cap_without_a_most_that_an_answer_may_cost_is_refused() -> None:
    with pytest.raises(ValueError, match="max_spend needs price_per_million"):
        OpenAIOptions(max_spend=1)
    with pytest.raises(ValueError, match="max_completion_tokens"):
        OpenAIOptions.model_validate(PRICES | {"max_spend": 1, "extra_body": {"max_tokens": None}})
    capped = {"max_tokens": None, "max_completion_tokens": 9}
    OpenAIOptions.model_validate(PRICES | {"max_spend": 1, "extra_body": capped})


OFF = ParaphraseOptions(engine="openai", model="smol", filters=FilterOptions(preset="off"))


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the secret MY_KEY, which is not there yet, in a container's folder of secrets."""
    monkeypatch.setattr("paraclip_core.paraphrase.engines.openai.SECRETS", tmp_path / "secrets")
    (tmp_path / "secrets").mkdir()
    return tmp_path / "secrets" / "MY_KEY"


@pytest.mark.parametrize("place", ["the environment", "a file that has changed since"])
def test_the_key_is_sent_and_shown_nowhere(
    place: str,
    openai_server: OpenAIServer,
    connect: Connect,
    secret: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "paraclip_core")
    in_file = place != "the environment"
    if in_file:
        secret.write_text(f"{KEY}\n")
    else:
        monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    engine = connect(api_key_env="MY_KEY")
    ask(engine, "a")
    if in_file:
        secret.write_text("sk-the-next")
    openai_server.faults = [status(500, f"cannot use {KEY}"), status(401, f"Incorrect key: {KEY}")]
    with pytest.raises(EngineError, match=rf"Incorrect key: \*\*\*.*{f'{secret}$' if in_file else 'MY_KEY'}") as caught:
        ask(engine, "b")
    assert openai_server.keys == {f"Bearer {KEY}"}
    assert not any(KEY in text for text in (repr(caught.value), repr(engine), engine.model, caplog.text))


def test_the_key_comes_from_the_environment_then_from_a_file_of_that_name(
    openai_server: OpenAIServer, connect: Connect, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sent() -> set[str]:
        openai_server.keys.clear()
        ask(connect(api_key_env="MY_KEY"), "a")
        return openai_server.keys

    assert sent() == {"Bearer none"}
    # As compose mounts what it has no file for.
    secret.symlink_to("/dev/null")
    assert sent() == {"Bearer none"}
    secret.unlink()
    secret.write_bytes(b"sk-of-the-file\r\n")
    assert sent() == {"Bearer sk-of-the-file"}
    # As compose sets a variable that its own environment lacks.
    monkeypatch.setenv("MY_KEY", "")
    assert sent() == {"Bearer sk-of-the-file"}
    monkeypatch.setenv("MY_KEY", KEY)
    assert sent() == {f"Bearer {KEY}"}
    secret.unlink()
    secret.mkdir()
    assert sent() == {f"Bearer {KEY}"}


def test_a_key_that_cannot_be_read_or_sent_is_an_error_in_words(
    connect: Connect, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What Docker makes of a bind mount whose file is not there.
    secret.mkdir()
    with pytest.raises(EngineError, match=rf"{secret} cannot be read: Is a directory; .*variable MY_KEY"):
        ask(connect(api_key_env="MY_KEY"), "a")
    secret.rmdir()
    for content in (b"sk-secret\nX-Evil: 1", b"\x80\x04sk-secret", "sk-secret-ключ".encode(), b""):
        secret.write_bytes(content)
        if not content:
            monkeypatch.setenv("MY_KEY", "sk-secret\nX-Evil: 1")
        with pytest.raises(EngineError, match=f"{secret if content else 'MY_KEY'} holds characters") as caught:
            ask(connect(api_key_env="MY_KEY"), "a")
        assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("base_url", "http://me:secret@host/v1"),
        ("base_url", "https://host/v1?api-key=secret"),
        ("base_url", "https://host/v1/chat/completions/"),
        ("extra_body", {"messages": [], "n": 3}),
    ],
)
def test_options_that_are_refused_without_repeating_them(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"paraphrase\.openai\.{name}") as caught:
        parse_settings({"paraphrase": {"openai": {name: value}}})
    assert "secret" not in str(caught.value)


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
def test_seeds_are_of_the_text_the_draw_and_the_run(one: str, other: str, draw: int, seed: int) -> None:
    def drawn(text: str, seed: int, draw: int, *messages: tuple[str, str]) -> int:
        return draw_seed(Prompt(messages, text, 1, seed), draw)

    assert 0 <= drawn(one, seed, draw) < 2**31
    assert drawn(one, seed, draw) == drawn(one, seed, draw, ("user", "elsewhere"))
    assert (drawn(one, seed, draw) == drawn(other, seed, draw)) == (one == other)
    assert drawn(one, seed, draw) != drawn(one, seed + 1, draw) and drawn(one, seed, draw) != drawn(one, seed, draw + 1)
