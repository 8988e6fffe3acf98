"""Lines of batch files: requests, what comes back, and anything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraclip_core.paraphrase.engines import Completion, Prompt, SamplingOptions
from paraclip_core.paraphrase.engines.batch_lines import Refused, read_line, request_line

REQUEST = bytes(range(16))
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
        {"id": "batch_req_123", "custom_id": REQUEST.hex(), "response": None, "error": None} | fields
    ).encode()


def response(body: Any, status: int = 200) -> dict[str, Any]:
    return {"response": {"status_code": status, "request_id": "req_123", "body": body}}


def refusal(raw: bytes) -> tuple[str, str]:
    result = read_line(raw, 1)
    assert isinstance(result, Refused)
    return result.reason, result.detail


def test_documented_lines_are_read_and_damaged_ones_refused() -> None:
    # OpenAI's guide and vLLM's.
    assert read_line(line(**response(COMPLETION)), 1) == (REQUEST, Completion(("Hello.",), 22, 2))
    vllm = {"id": "vllm-383d", "response": {"status_code": 200, "request_id": "vllm-batch-1", "body": COMPLETION}}
    assert read_line(b"\xef\xbb\xbf" + line(**vllm), 1) == (REQUEST, Completion(("Hello.",), 22, 2))
    prompt = Prompt((("user", "hi"),), "hi", 1, 0)
    assert "as `requests export` writes it" in refusal(request_line(REQUEST, "m", prompt, SamplingOptions(), {}))[1]
    whole = line(**response(COMPLETION))
    assert refusal(whole[:-40])[0] == refusal(b"\xff\xfe{}")[0] == refusal(b"[1]")[0] == "bad_json"
    assert refusal(b"[" * 100_000)[0] == "bad_json"


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
    assert read_line(line(**fields), 1) == (REQUEST, Completion((), 0, 0))


@pytest.mark.parametrize(
    ("fields", "reason", "detail"),
    [
        ({"error": {"code": "batch_expired", "message": "not done in time"}}, "failed", "not done in time"),
        (response({"error": {"message": "slow down", "code": "rate_limit"}}, 429), "failed", "slow down"),
        (response({"object": "error", "message": "as vLLM once had it"}, 400), "failed", "as vLLM once had it"),
        (response(None), "failed", "status 200"),
        (response({"choices": []}), "no_answer", "choices"),
        ({}, "no_response", "neither response nor error"),
        ({"custom_id": "request-1", **response(COMPLETION)}, "unknown_request", "'request-1'"),
        ({"custom_id": REQUEST.hex().upper() + "\x1b[2J"}, "unknown_request", "no request's key"),
    ],
)
def test_other_lines_are_refused_with_a_reason(fields: dict[str, Any], reason: str, detail: str) -> None:
    why, text = refusal(line(**fields))
    assert why == reason and detail in text
    assert text.isprintable()


@settings(max_examples=25)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda one: st.lists(one) | st.dictionaries(
    st.sampled_from(["custom_id", "response", "error", "body", "choices", "usage", "status_code", "message"]), one)
))  # fmt: skip
def test_nothing_in_a_line_stops_the_reader(content: Any) -> None:
    for fields in (
        content,
        {"custom_id": REQUEST.hex(), "response": content},
        {"custom_id": REQUEST.hex(), "error": content},
    ):
        read_line(json.dumps(fields).encode(), 1)


@given(st.text())
def test_a_request_is_one_line_of_ascii(text: str) -> None:
    prompt = Prompt((("system", "be brief"), ("user", text)), text, 1, 7)
    sampling = SamplingOptions(n=3, temperature=0.5, top_p=0.8, max_tokens=30)
    raw = request_line(REQUEST, "smol", prompt, sampling, {"reasoning_effort": "low", "seed": None})
    assert raw.isascii() and raw.count(b"\n") == 1 and raw.endswith(b"\n")
    assert json.loads(raw) == {
        "custom_id": REQUEST.hex(),
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
