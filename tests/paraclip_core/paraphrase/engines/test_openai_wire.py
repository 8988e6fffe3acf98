"""Answers of servers as bytes: whatever they are, they are read or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.paraphrase.engines.openai_wire import (
    Answer,
    NonsenseError,
    draw_seed,
    error_in,
    plain,
    read_answer,
)
from paraclip_core.paraphrase.protocol import Prompt

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
