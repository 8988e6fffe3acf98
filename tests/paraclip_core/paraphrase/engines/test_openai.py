"""What the engine `openai` sends, reads and forgives, against a real server that misbehaves in every way we know of."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from openai_asking import (  # pyright: ignore[reportMissingImports]
    KEY,
    TWO,
    Connect,
    ask,
    first_words,
    numbered,
)
from openai_server import (  # pyright: ignore[reportMissingImports]
    Fault,
    OpenAIServer,
    body,
    hang,
    nonsense,
    reset,
    status,
    words_of,
)

from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.engines.base import Completion, Prompt
from paraclip_core.paraphrase.prompts import FEW_SHOT, PAPER
from paraclip_core.paraphrase.small_model.synonyms import THESAURUS


def test_answers_come_in_the_order_of_the_prompts_whoever_is_first(
    openai_server: OpenAIServer, connect: Connect
) -> None:
    overtaken, waited = threading.Event(), []

    def slow_first(asked: dict[str, Any]) -> Any:
        if words_of(asked) == "t0":
            waited.append(overtaken.wait(30))
        else:
            overtaken.set()
        return well_of(asked)

    well_of, openai_server.answer = openai_server.answer, slow_first
    found = ask(connect(), *(f"t{number}" for number in range(30)))
    assert first_words(found) == [f"well t{number}" for number in range(30)]
    assert all(completion.texts[1].endswith(" 1") for completion in found)
    assert {(completion.prompt_tokens, completion.completion_tokens) for completion in found} == {(10, 10)}
    assert waited == [True]


def test_answers_do_not_depend_on_what_is_asked_beside_them(connect: Connect) -> None:
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


TRANSIENT: dict[str, Fault] = {
    "busy": status(429, "slow down"),
    "broken": status(500),
    "away": status(503),
    "bad gateway": body(b"<html><h1>502 Bad Gateway</h1></html>", 502),
    "error page with status 200": body(b"<!DOCTYPE html><p>maintenance</p>"),
    "error object with status 200": body({"error": {"message": "upstream is down", "code": 502}}),
    "nothing": body(b""),
    "half a body": nonsense(b'{"choices": [{"mess', 500),
    "wrong JSON": body(b'{"choices": [{]}'),
    "a list": body([1, 2]),
    "deep JSON": body(b"[" * 100_000),
    "no choices": body({"usage": {}}),
    "empty choices": body({"choices": []}),
    "choices of text": body({"choices": ["well"]}),
    "a choice without text": body({"choices": [{"index": 0}]}),
    "content that is a number": body({"choices": [{"index": 0, "message": {"content": 3}}]}),
    "bytes that are no text": body(b"\xff\xfe\x00\xd8"),
    "ten megabytes": body(b'{"choices": "' + b"a" * 10_000_000 + b'"}'),
    "not gzip": body(b"no gzip", 200, {"Content-Encoding": "gzip"}),
    "reset": reset,
}


@pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT)
def test_what_may_pass_is_tried_again(fault: Fault, openai_server: OpenAIServer, connect: Connect) -> None:
    expected = ask(connect(), "a", "b")
    openai_server.faults = [fault, fault]
    assert ask(connect(), "a", "b") == expected
    assert len(openai_server.asked) == 2 + 2 + 2


@pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT)
def test_what_does_not_pass_is_an_error_that_says_so(
    fault: Fault, openai_server: OpenAIServer, connect: Connect
) -> None:
    openai_server.faults = [fault] * 10
    with pytest.raises(EngineError, match=r"1 of 1 requests failed with all their retries, .* 'a': \w"):
        ask(connect(retries=1), "a")
    # Twice, and another text.
    assert len(openai_server.asked) == 2 * (2 + 1)


def test_a_hanging_server_is_left_after_the_timeout(openai_server: OpenAIServer, connect: Connect) -> None:
    def drip(handler: Any) -> None:
        handler.send(200, b"{", {"Content-Length": "1000"})
        while not handler.owner.stopping.wait(0.05):
            handler.wfile.write(b" ")

    openai_server.faults = [hang, drip]
    began = time.monotonic()
    assert first_words(ask(connect(timeout_seconds=0.3, concurrency=1), "a")) == ["well a"]
    assert 0.6 <= time.monotonic() - began < 50


REFUSED: dict[str, tuple[Fault, str]] = {
    "no key": (
        status(401, "you must provide a key"),
        r"request without key \(OPENAI_API_KEY is not set\).*must provide",
    ),
    "no right": (status(403, "not for you"), "not for you; put a valid key into OPENAI_API_KEY"),
    "unknown model": (status(404, "no model smol-2"), "paraphrase.model is 'smol', the server has smol, other"),
    "wrong field": (status(400, "unknown field top_p"), r"status 400\): unknown field top_p"),
    "FastAPI's words": (body({"detail": [{"loc": "body", "msg": "extra"}]}, 422), "extra"),
    "moved": (body(b"", 301, {"Location": "http://elsewhere/v1"}), "sends on to http://elsewhere/v1; set .*base_url"),
    "no credit": (status(429, "pay first", code="insufficient_quota"), "pay first; see to the account"),
    "come back tomorrow": (status(429, headers={"Retry-After": "86400"}), "asks to come back in 1440 minutes"),
}


MAY_BE_ABOUT_ONE = {"no right", "wrong field", "FastAPI's words"}


@pytest.mark.parametrize("case", REFUSED)
def test_what_trying_again_does_not_mend_fails_at_once(
    case: str, openai_server: OpenAIServer, connect: Connect
) -> None:
    fault, message = REFUSED[case]
    openai_server.answer = lambda asked: fault
    with pytest.raises(EngineError, match=message):
        ask(connect(concurrency=1), "a", "b")
    # Another text is asked about to know that it is not about this one; the second prompt is not.
    assert [words_of(asked) for asked in openai_server.asked] == (
        ["a", "a dog on a beach"] if case in MAY_BE_ABOUT_ONE else ["a"]
    )


def test_an_address_without_its_version_is_suspected(openai_server: OpenAIServer, connect: Connect) -> None:
    openai_server.answer = lambda asked: status(404, "not found")
    engine = connect(base_url=openai_server.url.removesuffix("/v1"))
    openai_server.models = None
    with pytest.raises(EngineError, match=r"does paraphrase.openai.base_url end .* in /v1"):
        ask(engine, "a")


def test_retry_after_is_waited_for_by_all(openai_server: OpenAIServer, connect: Connect) -> None:
    openai_server.faults = [status(429, headers={"Retry-After": "0.5"})]
    ask(connect(concurrency=1), "a", "b")
    assert openai_server.times[1] - openai_server.times[0] >= 0.5
    # HTTP dates have whole seconds.
    openai_server.faults = [
        status(503, headers={"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=2))})
    ]
    began = time.monotonic()
    ask(connect(), "a")
    assert 0.9 <= time.monotonic() - began < 50


def test_retry_after_holds_the_others_back_though_it_came_with_the_last_try(
    openai_server: OpenAIServer, connect: Connect
) -> None:
    openai_server.faults = [status(429, headers={"Retry-After": "0.5"})]
    ask(connect(concurrency=1, retries=0, max_failures=2), "a", "b")
    assert openai_server.times[1] - openai_server.times[0] >= 0.5


def test_choices_are_sorted_cut_and_read_in_every_shape(openai_server: OpenAIServer, connect: Connect) -> None:
    def choices(*contents: Any) -> Any:
        numbered = [{"index": number, "message": {"content": content}} for number, content in enumerate(contents)]
        return {"choices": numbered[::-1], "usage": {"prompt_tokens": -3, "completion_tokens": "many"}}

    openai_server.answer = lambda asked: choices(
        "one", [{"type": "text", "text": "tw"}, {"type": "text", "text": "o"}], "three"
    )
    found = ask(connect(), "a caption of some length")[0]
    assert found.texts == ("one", "two")
    # Counts that cannot be are estimated.
    assert 1 < found.prompt_tokens < 50 and 1 < found.completion_tokens < 10
    openai_server.answer = lambda asked: choices(None, "two")
    assert ask(connect(), "a")[0].texts == ("", "two")


@pytest.mark.parametrize(
    "refuse",
    [None, status(400, "Only one completion choice is allowed"), status(422, "must be at most 1", param="n")],
    ids=["ignores n", "refuses n", "refuses n by field"],
)
def test_a_server_that_gives_one_answer_at_a_time(
    refuse: Fault | None, openai_server: OpenAIServer, connect: Connect
) -> None:
    def single(asked: dict[str, Any]) -> Any:
        if asked.get("n", 1) > 1 and refuse:
            return refuse
        return one_of({**asked, "n": 1})

    one_of, openai_server.answer = openai_server.answer, single
    three = TWO.model_copy(update={"n": 3})
    expected = ask(connect(ask_for_n=False), "a", "b", "c", sampling=three)
    assert [len(set(completion.texts)) for completion in expected] == [3, 3, 3]
    assert {completion.prompt_tokens for completion in expected} == {30}
    before = len(openai_server.asked)
    found = ask(connect(concurrency=1), "a", "b", "c", sampling=three)
    # However it is found out, the draws are the same; and it is found out once.
    assert found == expected
    assert len(openai_server.asked) - before == 9 + (1 if refuse else 0)


def test_plain_text_goes_on_where_a_server_can_do_that(openai_server: OpenAIServer, connect: Connect) -> None:
    words = [Prompt(THESAURUS.messages(word), word, 0, 0) for word in ("fast", "car")]
    connect(concurrency=1).generate(words, TWO)
    assert openai_server.paths == {"/v1/completions": 2}
    assert openai_server.asked[0]["prompt"].endswith("\nfast:")
    assert openai_server.asked[0]["stop"] == ["\n"]
    openai_server.answer, well = (
        lambda asked: well(asked) if "messages" in asked else status(404, "this is a chat model"),
        openai_server.answer,
    )
    found = connect(concurrency=1).generate(words, TWO)
    assert [len(completion.texts) for completion in found] == [2, 2]
    assert openai_server.paths == {"/v1/completions": 3, "/v1/chat/completions": 2}


LONG = status(400, "This model's maximum context length is 16 tokens. You requested 300.", type="BadRequestError")


@pytest.mark.parametrize(
    "fault",
    [
        LONG,
        status(400, "no", code="context_length_exceeded"),
        body(b"too much", 413),
        status(400, "no", code="content_filter"),
    ],
    ids=["vllm", "by its code", "too large", "against the rules"],
)
def test_a_prompt_that_is_declined_costs_itself_alone(
    fault: Fault, openai_server: OpenAIServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    openai_server.answer, well = (
        lambda asked: fault if words_of(asked) == "t2" else well(asked),
        openai_server.answer,
    )
    found = ask(connect(), "t0", "t1", "t2", "t3")
    assert found[2] == Completion((), 0, 0)
    assert [len(completion.texts) for completion in found] == [2, 2, 0, 2]
    assert "1 of 4 prompts were declined" in caplog.text


def test_a_context_that_is_too_small_for_all_is_an_error(openai_server: OpenAIServer, connect: Connect) -> None:
    openai_server.answer = lambda asked: LONG
    with pytest.raises(EngineError, match=r"takes none of the prompts: .*16 tokens.*longer context") as caught:
        connect().generate(numbered(200), TWO)
    # No answer of this server's: nothing is to be kept.
    assert caught.value.finished == {}
    assert len(openai_server.asked) < 60


def test_a_model_that_never_says_a_word_is_an_error(openai_server: OpenAIServer, connect: Connect) -> None:
    openai_server.answer = lambda asked: {"choices": [{"message": {"content": None}, "finish_reason": "length"}] * 2}
    with pytest.raises(EngineError, match="gave 16 answers without a word") as caught:
        connect(concurrency=1).generate(numbered(50), TWO)
    assert len(caught.value.finished) == len(openai_server.asked) == 16


def test_another_model_than_the_one_asked_for_is_told_once(
    openai_server: OpenAIServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    well = openai_server.answer
    openai_server.answer = lambda asked: well(asked) | {"model": "smol" if words_of(asked) == "a" else "large-2026"}
    ask(connect(), "a")
    assert not caplog.text
    ask(connect(), "b", "c", "d")
    assert caplog.text.count("asked for the model 'smol' and says that 'large-2026' answered") == 1


def test_the_check_asks_for_nothing_and_finds_a_model_under_its_names(
    openai_server: OpenAIServer, connect: Connect
) -> None:
    connect("smol").check()
    openai_server.models = [{"id": "llama3:latest", "owned_by": "library"}]
    connect("llama3").check()
    openai_server.models = [{"id": "/models/some.gguf", "owned_by": "llamacpp"}]
    connect("any name").check()
    # Not every server has a list.
    for models in ([], None, "nonsense", [1], [{"name": "smol"}]):
        openai_server.models = models
        connect("any name").check()
    assert openai_server.asked == []


def test_the_check_says_what_to_mend(
    openai_server: OpenAIServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineError, match=r"has no model 'smol-2', but smol, other; set paraphrase.model"):
        connect("smol-2").check()
    openai_server.refuses = 401
    with pytest.raises(EngineError, match=r"refuses a request without key \(OPENAI_API_KEY is not set\)"):
        connect().check()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(EngineError, match=r"refuses the key in OPENAI_API_KEY: .*put a valid key into OPENAI_API_KEY"):
        connect().check()
    openai_server.stop()
    with pytest.raises(EngineError, match=r"cannot be reached: .*; start the server, or set .*base_url"):
        connect().check()


def test_turns_are_plain_text_for_a_model_without_a_template(openai_server: OpenAIServer, connect: Connect) -> None:
    message = "default chat template is no longer allowed, so you must provide a chat template"
    openai_server.answer, well = (
        lambda asked: status(400, message) if "messages" in asked else well(asked),
        openai_server.answer,
    )
    few_shot = Prompt(FEW_SHOT[1].messages("a dog"), "a dog", 1, 0)
    (completion, _) = connect(concurrency=1).generate([few_shot, few_shot], TWO)
    assert len(completion.texts) == 2
    assert openai_server.paths == {"/v1/chat/completions": 1, "/v1/completions": 2}
    assert openai_server.asked[1]["prompt"].endswith("\na dog\n") and openai_server.asked[1]["stop"] == ["\n"]
