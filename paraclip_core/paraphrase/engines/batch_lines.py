"""Requests of the engine `openai` as lines of batch files, for OpenAI's Batch API and compatible programs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paraclip_core.paraphrase.engines import Completion, Prompt, SamplingOptions
from paraclip_core.paraphrase.engines.chat import DECLINED, NO_ANSWER, QUOTED, read_completion, request_body
from paraclip_core.paraphrase.keys import KEY_BYTES
from paraclip_core.text_safety import one_line

URL = "/v1/chat/completions"
UNCOUNTED = -1
"""Prompt tokens of an answer that does not report them."""
KEY = re.compile(rf"[0-9a-f]{{{2 * KEY_BYTES}}}")
_TOO_LONG = re.compile(
    r"context[ _-](?:length|window|size)|(?:prompt|input|request) is too (?:long|large)|max_model_len", re.I
)
"""Words that servers use for a prompt that is too long."""


@dataclass(frozen=True)
class Refused:
    """A rejected line."""

    reason: str
    detail: str


def request_line(key: bytes, model: str, prompt: Prompt, sampling: SamplingOptions, extra: Mapping[str, Any]) -> bytes:
    """A request as a line, line break included: its key, and the body that the engine `openai` would send."""
    body = request_body(model, prompt, sampling, sampling.draws, 0, extra)
    line = {"custom_id": key.hex(), "method": "POST", "url": URL, "body": body}
    # ASCII: some readers split lines at separators that JSON allows inside a text.
    return json.dumps(line).encode() + b"\n"


def read_line(raw: bytes, n: int) -> tuple[bytes, Completion] | Refused:
    """Key and completion of a line that answers a request for `n` texts; no texts if the prompt was declined."""
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return Refused("bad_json", one_line(error, 120))
    if not isinstance(line, dict):
        return Refused("bad_json", f"a {type(line).__name__}, expected an object with custom_id, response and error")
    custom_id, response, error = line.get("custom_id"), line.get("response"), line.get("error")
    if not isinstance(custom_id, str) or not KEY.fullmatch(custom_id):
        return Refused("unknown_request", f"custom_id {one_line(custom_id, 80)!r} is no request's key")
    if response is None and error is None:
        what = "a request, as `requests export` writes it" if "url" in line else "neither response nor error"
        return Refused("no_response", f"{what}; expected what came back")
    key, response = bytes.fromhex(custom_id), response if isinstance(response, dict) else {}
    body = response.get("body")
    if isinstance(body, dict) and isinstance(body.get("choices"), list):
        try:
            return key, read_completion(body, n, UNCOUNTED)
        except ValueError as nonsense:
            return Refused("no_answer", str(nonsense))
    failure = one_line(error or body, QUOTED)
    if DECLINED.search(failure) or _TOO_LONG.search(failure):
        # As in the engine `openai`: the filters reject it by name, and it is not requested again.
        return key, NO_ANSWER
    return Refused("failed", f"status {one_line(response.get('status_code'), 20)}: {failure}")
