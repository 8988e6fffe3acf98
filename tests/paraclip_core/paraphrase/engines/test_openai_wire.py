"""Answers of servers as bytes: whatever they are, they are read or refused by name."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.config import SamplingOptions
from paraclip_core.paraphrase.engines.base import Prompt
from paraclip_core.paraphrase.engines.openai_wire import (
    MOST_BYTES,
    REASONS,
    UNCOUNTED,
    Answer,
    BatchAnswer,
    NonsenseError,
    Refused,
    answer_lines,
    draw_seed,
    draws,
    error_in,
    plain,
    read_answer,
    read_line,
    request_line,
)

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
NAMES = st.sampled_from(
    ["choices", "message", "content", "text", "index", "usage", "prompt_tokens", "error", "code", "type", "detail"]
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5), max_leaves=20
)
CHOICE = st.dictionaries(NAMES, JSON, max_size=3) | st.fixed_dictionaries(
    {"message": st.fixed_dictionaries({"content": JSON})}, optional={"index": LEAVES}
)


@given(JSON | st.fixed_dictionaries({"choices": st.lists(CHOICE, max_size=5)}), st.integers(1, 4))
def test_any_json_is_an_answer_or_nonsense(content: Any, n: int) -> None:
    raw = json.dumps(content).encode()
    said = error_in(raw)
    assert said is None or (said.text.isprintable() and (said.status is None or 400 <= said.status < 600))
    try:
        answer = read_answer(raw, n, 7)
    except NonsenseError as error:
        assert str(error).isprintable()
        return
    assert 1 <= len(answer.texts) <= n and all(isinstance(text, str) for text in answer.texts)
    assert answer.prompt_tokens >= 0 and answer.completion_tokens >= 0
    # What is answered is not taken for an error as well.
    assert said is None


@given(st.binary(max_size=60))
def test_any_bytes_are_an_answer_or_nonsense(raw: bytes) -> None:
    assert error_in(raw) is None or raw.lstrip()[:1] == b"{"
    with pytest.raises(NonsenseError):
        read_answer(raw, 1, 7)


@given(st.permutations(range(5)), st.integers(1, 5))
def test_choices_come_in_the_order_of_their_index(order: list[int], n: int) -> None:
    raw = json.dumps({"choices": [{"index": i, "text": str(i)} for i in order]}).encode()
    assert read_answer(raw, n, 7).texts == tuple(str(i) for i in range(n))


def test_choices_without_an_index_stay_as_they_come() -> None:
    raw = json.dumps({"choices": [{"text": "b"}, {"text": "a", "index": 0}]}).encode()
    assert read_answer(raw, 2, 7) == Answer(("b", "a"), 7, 2)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [({"prompt_tokens": 4, "completion_tokens": 5}, (4, 5)), ({"prompt_tokens": 2**40}, (7, 1)), (None, (7, 1))],
)
def test_counts_that_cannot_be_are_estimated(usage: Any, expected: tuple[int, int]) -> None:
    answer = read_answer(json.dumps({"choices": [{"text": "a"}], "usage": usage}).encode(), 1, 7)
    assert (answer.prompt_tokens, answer.completion_tokens) == expected


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"error": {"message": "m"}}, "m"),
        ({"error": "m"}, "m"),
        ({"object": "error", "message": "m", "code": 400}, "m"),
        ({"detail": "m"}, "m"),
        ({"detail": [{"msg": "m"}]}, "[{'msg': 'm'}]"),
    ],
)
def test_errors_in_every_shape(body: Any, text: str) -> None:
    said = error_in(json.dumps(body).encode())
    assert said is not None and said.text == text


@pytest.mark.parametrize(
    "text",
    [
        # vLLM, OpenAI, llama.cpp, Mistral, Anthropic's gateway
        "This model's maximum context length is 1024 tokens. However, you requested 1100 tokens",
        "'max_tokens' is too large: 40. This model's maximum context length is 16 tokens",
        "the request exceeds the available context size. try increasing the context size",
        "Prompt contains 40000 tokens, too large for model with 32768 maximum context length",
        "prompt is too long: 210000 tokens > 200000 maximum",
    ],
)
def test_a_context_that_is_too_small_is_seen_in_every_wording(text: str) -> None:
    said = error_in(json.dumps({"error": {"message": text}}).encode())
    assert said is not None and said.declines


@pytest.mark.parametrize("text", ["unknown field top_p", "temperature must be at most 1", "model not found", "bad key"])
def test_other_refusals_are_not_about_the_prompt(text: str) -> None:
    said = error_in(json.dumps({"error": {"message": text}}).encode())
    assert said is not None and not said.declines and not said.about_n


@given(st.text(max_size=20), st.text(max_size=20), st.integers(0, 5), st.integers(0, 2**31))
def test_seeds_are_of_the_text_the_draw_and_the_run(one: str, other: str, draw: int, seed: int) -> None:
    def drawn(text: str, seed: int, draw: int, *messages: tuple[str, str]) -> int:
        return draw_seed(Prompt(messages, text, 1, seed), draw)

    assert 0 <= drawn(one, seed, draw) < 2**31
    assert drawn(one, seed, draw) == drawn(one, seed, draw, ("user", "elsewhere"))
    assert (drawn(one, seed, draw) == drawn(other, seed, draw)) == (one == other)
    assert drawn(one, seed, draw) != drawn(one, seed + 1, draw) and drawn(one, seed, draw) != drawn(one, seed, draw + 1)


def test_text_from_outside_is_one_plain_line() -> None:
    assert plain(b"\x1b[31mred\x07\n\r\nline \xff") == "?[31mred? line \ufffd"
    assert plain("x" * 500) == "x" * 300 + "…"


KEY = bytes(range(16))
HELLO = {"role": "assistant", "content": "Hello."}
COMPLETION = {
    "id": "chatcmpl-123",
    "object": "chat.completion",
    "created": 1711652795,
    "model": "gpt-3.5-turbo-0125",
    "choices": [{"index": 0, "message": HELLO, "logprobs": None, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 22, "completion_tokens": 2, "total_tokens": 24},
    "system_fingerprint": "fp_123",
}


def line(**fields: Any) -> bytes:
    return json.dumps(
        {"id": "batch_req_123", "custom_id": KEY.hex(), "response": None, "error": None} | fields
    ).encode()


def response(body: Any, status: int = 200) -> dict[str, Any]:
    return {"response": {"status_code": status, "request_id": "req_123", "body": body}}


def refusal(raw: bytes | None) -> tuple[str, str]:
    result = read_line(raw, 1)
    assert isinstance(result, Refused)
    assert result.reason in REASONS
    return result.reason, result.detail


@pytest.mark.parametrize(
    "fields",
    [
        # OpenAI's guide, vLLM's of today and vLLM's first releases.
        response(COMPLETION),
        {"id": "vllm-383d", "response": {"status_code": 200, "request_id": "vllm-batch-1", "body": COMPLETION}},
        {"id": "vllm-383d", "response": COMPLETION},
    ],
)
def test_documented_lines_are_read(fields: dict[str, Any]) -> None:
    assert read_line(line(**fields), 1) == BatchAnswer(KEY, ("Hello.",), 22, 2)


def test_several_answers_come_in_the_order_of_their_index_and_none_too_many() -> None:
    choices = [{"index": i, "message": {"content": f"answer {i}"}} for i in (2, 0, 1)]
    answer = read_line(line(**response({"choices": choices})), 2)
    assert answer == BatchAnswer(KEY, ("answer 0", "answer 1"), UNCOUNTED, 6)


@pytest.mark.parametrize(
    "fields",
    [
        response({"error": {"code": "content_filter", "message": "The prompt was filtered", "status": 400}}, 400),
        response({"error": {"message": "This model's maximum context length is 512 tokens", "code": 400}}, 400),
        # vLLM has no body then.
        {**response(None, 400), "error": "This model's maximum context length is 512 tokens."},
        {**response(None, 400), "error": {"error": {"message": "too long", "type": "context_length_exceeded"}}},
        {"error": {"code": "content_policy_violation", "message": "no"}},
    ],
)
def test_a_declined_request_is_answered_with_nothing(fields: dict[str, Any]) -> None:
    assert read_line(line(**fields), 1) == BatchAnswer(KEY, (), 0, 0)


def test_no_choices_are_no_answer_and_are_paid_for() -> None:
    body = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 0}}
    assert read_line(line(**response(body)), 1) == BatchAnswer(KEY, (), 9, 0)
    filtered = {"choices": [{"index": 0, "message": {"content": None}, "finish_reason": "content_filter"}]}
    answer = read_line(line(**response(filtered)), 1)
    assert isinstance(answer, BatchAnswer) and answer.texts == ("",)


@pytest.mark.parametrize(
    ("fields", "reason", "detail"),
    [
        ({"error": {"code": "batch_expired", "message": "not done in time"}}, "failed", "not done in time"),
        (response({"error": {"message": "slow down", "code": "rate_limit"}}, 429), "failed", "status 429: slow down"),
        ({**response(None, 500), "error": {"error": {"message": "died"}}}, "failed", "status 500: died"),
        (response({"object": "error", "message": "as vLLM once had it"}, 400), "failed", "as vLLM once had it"),
        (response(None), "failed", "no body"),
        (response(COMPLETION, 500), "failed", "status 500"),
        ({"response": "text"}, "failed", "no body"),
        (response({"object": "list"}), "no_answer", "choices"),
        (response({"choices": [1]}), "no_answer", "choices"),
        (response({"choices": [{"index": 0}]}), "no_answer", "choice"),
        ({}, "no_response", "neither response nor error"),
        ({"custom_id": "request-1", **response(COMPLETION)}, "unknown_request", "'request-1'"),
        ({"custom_id": KEY.hex().upper() + "\x1b[2J"}, "unknown_request", "no request's key"),
        ({"custom_id": None}, "unknown_request", "no request's key"),
    ],
)
def test_other_lines_are_refused_with_a_reason(fields: dict[str, Any], reason: str, detail: str) -> None:
    why, text = refusal(line(**fields))
    assert why == reason and detail in text
    assert text.isprintable()


def test_a_request_that_was_not_answered_is_told_from_an_answer() -> None:
    prompt = Prompt((("user", "hi"),), "hi", 1, 0)
    assert "as `requests export` writes it" in refusal(request_line(KEY, "m", prompt, SamplingOptions(), {}))[1]


def test_damaged_lines_are_refused() -> None:
    whole = line(**response(COMPLETION))
    assert refusal(whole[:-40])[0] == refusal(b"\xff\xfe{}")[0] == refusal(b"[1]")[0] == "bad_json"
    assert refusal(b"[" * 100_000)[0] == "bad_json"
    assert refusal(None)[0] == "too_long"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda one: st.lists(one) | st.dictionaries(
    st.sampled_from(["custom_id", "response", "error", "body", "choices", "usage", "status_code", "message"]), one)
))  # fmt: skip
def test_nothing_in_a_line_stops_the_reader(content: Any) -> None:
    for fields in (content, {"custom_id": KEY.hex(), "response": content}, {"custom_id": KEY.hex(), "error": content}):
        read_line(json.dumps(fields).encode(), 1)


def test_lines_are_numbered_and_the_longest_passed_over() -> None:
    file = io.BytesIO(b"\xef\xbb\xbf{}\r\n\n  \n" + b"x" * (2 * MOST_BYTES + 10) + b"\n{1}\n{2}")
    assert list(answer_lines(file)) == [(1, b"{}"), (4, None), (5, b"{1}"), (6, b"{2}")]
    edge = io.BytesIO(b"x" * MOST_BYTES + b"\ny" * 2)
    assert [number for number, raw in answer_lines(edge) if raw is not None] == [1, 2, 3]


@given(st.text())
def test_a_request_is_one_line_of_ascii(text: str) -> None:
    prompt = Prompt((("system", "be brief"), ("user", text)), text, 1, 7)
    sampling = SamplingOptions(n=3, temperature=0.5, top_p=0.8, max_tokens=30)
    raw = request_line(KEY, "smol", prompt, sampling, {"reasoning_effort": "low", "seed": None})
    assert raw.isascii() and raw.count(b"\n") == 1 and raw.endswith(b"\n")
    assert json.loads(raw) == {
        "custom_id": KEY.hex(),
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "smol",
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": text}],
            "max_tokens": 30,
            "temperature": 0.5,
            "top_p": 0.8,
            "n": 3,
            "reasoning_effort": "low",
        },
    }


def test_a_greedy_request_has_one_answer() -> None:
    assert (draws(SamplingOptions(temperature=0, n=4)), draws(SamplingOptions(temperature=1, n=4))) == (1, 4)
