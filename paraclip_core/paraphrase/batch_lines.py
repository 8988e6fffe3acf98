"""The lines of batch files: requests as OpenAI's Batch API and `vllm run-batch` read them, and the answers they give.

A request's `custom_id` is its key, so an answer is filed by its line alone, in whatever order the lines come back.
A line of no use gets one of the reason codes below and a detail.

===================  ==================================================================
``bad_json``         the line is no JSON object
``too_long``         more bytes than any answer has
``unknown_request``  its `custom_id` is no key of a request that the settings would make
``no_response``      a request instead of an answer
``failed``           the server's error, in its words
``no_answer``        an answer without the texts that the interface promises
===================  ==================================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from paraclip_core.config import SamplingOptions
from paraclip_core.paraphrase.engines.openai_wire import (
    NonsenseError,
    ServerError,
    error_in,
    plain,
    read_answer,
    request_body,
)
from paraclip_core.paraphrase.protocol import Prompt
from paraclip_core.paraphrase.requests import KEY_BYTES

__all__ = ["REASONS", "UNCOUNTED", "BatchAnswer", "Refused", "answer_lines", "draws", "read_line", "request_line"]

URL = "/v1/chat/completions"
MOST_BYTES = 2_000_000
"""No answer of at most 64 times 4,096 tokens is larger."""
UNCOUNTED = -1
"""Tokens of a prompt that its answer does not count."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
KEY = re.compile(rf"[0-9a-f]{{{2 * KEY_BYTES}}}")

REASONS = ("bad_json", "too_long", "unknown_request", "no_response", "failed", "no_answer")
"""Why a line is left out."""


@dataclass(frozen=True)
class BatchAnswer:
    """A line that answers a request, or says for good that there is no answer to it."""

    key: bytes
    """The request's, 16 bytes."""
    texts: tuple[str, ...]
    """Raw answers; none where the request was declined."""
    prompt_tokens: int
    """`UNCOUNTED` where the line does not say."""
    completion_tokens: int


@dataclass(frozen=True)
class Refused:
    """A line of no use, with one of `REASONS`."""

    reason: str
    detail: str


def draws(sampling: SamplingOptions) -> int:
    """Answers of a request: greedy decoding has one."""
    return 1 if sampling.temperature == 0 else sampling.n


def request_line(key: bytes, model: str, prompt: Prompt, sampling: SamplingOptions, extra: Mapping[str, Any]) -> bytes:
    """A request with its line break: the body that the engine `openai` would send.

    Args:
        key: the request's.
        model: the model's name at the server.
        prompt: what is asked.
        sampling: how to draw.
        extra: fields to put over the body's; None takes a field out.
    """
    body = request_body(model, prompt, sampling, draws(sampling), 0, True, extra)
    line = {"custom_id": key.hex(), "method": "POST", "url": URL, "body": body}
    # ASCII: some readers cut lines at separators that JSON allows inside of a text.
    return json.dumps(line).encode() + b"\n"


def answer_lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Numbers (from 1) and bytes of a file's lines, blank ones aside; None for one that is too long for any answer."""
    number = 0
    while raw := file.readline(MOST_BYTES + 1):
        number += 1
        whole = raw.endswith(b"\n") or len(raw) <= MOST_BYTES
        if not whole:
            while (rest := file.readline(MOST_BYTES)) and not rest.endswith(b"\n"):
                pass
        line = raw.removeprefix(BYTE_ORDER_MARK).strip() if number == 1 else raw.strip()
        if line:
            yield number, line if whole else None


def read_line(raw: bytes | None, n: int) -> BatchAnswer | Refused:
    """What a line of :func:`answer_lines` says.

    Takes the output and error files of OpenAI's Batch API and of those who follow it, and those of `vllm run-batch`,
    in whose first releases `response` was the body itself.

    Args:
        raw: the line.
        n: answers that were asked for.
    """
    if raw is None:
        return Refused("too_long", f"more than {MOST_BYTES} bytes")
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return Refused("bad_json", plain(error, 120))
    if not isinstance(line, dict):
        return Refused("bad_json", f"a {type(line).__name__}, expected an object with custom_id, response and error")
    custom_id = line.get("custom_id")
    if not isinstance(custom_id, str) or not KEY.fullmatch(custom_id):
        return Refused("unknown_request", f"custom_id {plain(custom_id, 80)!r} is no request's key")
    return _answer(bytes.fromhex(custom_id), line, n)


def _answer(key: bytes, line: dict[str, Any], n: int) -> BatchAnswer | Refused:
    response, error = line.get("response"), line.get("error")
    if response is None and error is None:
        what = "a request, as `requests export` writes it" if "url" in line else "neither response nor error"
        return Refused("no_response", f"{what}; expected what came back")
    holder = response if isinstance(response, dict) else {}
    body, status = holder if "choices" in holder else holder.get("body"), holder.get("status_code", 200)
    failure = _failure(body) or _failure(error if isinstance(error, dict) and "error" in error else {"error": error})
    if failure is not None and failure.declines:
        # As the engine `openai` has it: the gates reject it by name, and it is not asked for again.
        return BatchAnswer(key, (), 0, 0)
    if failure is not None or not isinstance(body, dict) or (type(status) is int and not 200 <= status < 300):
        return Refused("failed", f"status {plain(status, 20)}: {failure.text if failure else 'no body'}")
    silent = body.get("choices") == []
    try:
        content = {**body, "choices": [{"text": ""}]} if silent else body
        answer = read_answer(json.dumps(content).encode(), n, UNCOUNTED)
    except NonsenseError as nonsense:
        return Refused("no_answer", str(nonsense))
    return BatchAnswer(key, () if silent else answer.texts, answer.prompt_tokens, answer.completion_tokens)


def _failure(holder: Any) -> ServerError | None:
    return error_in(json.dumps(holder).encode()) if isinstance(holder, dict) else None
