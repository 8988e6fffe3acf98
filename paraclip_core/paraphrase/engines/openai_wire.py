"""Requests and answers of OpenAI's HTTP interface as bytes: bodies for the engine `openai`, lines for batch files.

Batch files are those of OpenAI's Batch API, of its like, and of `vllm run-batch`. A line's `custom_id` is the request's
key, so an answer is filed by its line alone, in whatever order the lines come back. A line of no use gets one of the
reason codes below and a detail.

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

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO

from paraclip_core.config import SamplingOptions
from paraclip_core.paraphrase.engines.base import Prompt
from paraclip_core.paraphrase.requests import KEY_BYTES

BYTES_PER_TOKEN = 3
"""On the safe side: English has four or more."""
TOKENS_PER_TURN = 8
MOST_TOKENS = 10_000_000
"""A count beyond this is a mistake of the server's."""
_CONTEXT = re.compile(
    r"context[ _-](?:length|window|size)|exceed_context|(?:prompt|input|request) is too (?:long|large)|max_model_len",
    re.I,
)
_DECLINED = re.compile(r"context_length|context_size|content_filter|content_policy")
_ABOUT_N = re.compile(r"\bn\b|choice|best_of|(?:number of|multiple|several) (?:answers|completions|sequences)", re.I)

URL = "/v1/chat/completions"
MOST_BYTES = 2_000_000
"""No answer of at most 64 times 4,096 tokens is larger."""
UNCOUNTED = -1
"""Tokens of a prompt that its answer does not count."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
KEY = re.compile(rf"[0-9a-f]{{{2 * KEY_BYTES}}}")

REASONS = ("bad_json", "too_long", "unknown_request", "no_response", "failed", "no_answer")
"""Why a line is left out."""


class NonsenseError(Exception):
    """A server's answer is not what the interface promises; says in what."""


@dataclass(frozen=True)
class Answer:
    """The texts of one answer, and what it cost."""

    texts: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int
    model: str = ""
    """The model that the server says has answered."""


@dataclass(frozen=True)
class ServerError:
    """What a server said about a request that it did not answer."""

    text: str
    code: str
    """Its codes and types, lower case, with blanks between."""
    status: int | None = None
    """The status it names in the text, where that differs from the one that it sent."""

    @property
    def declines(self) -> bool:
        """Whether it is this prompt that is not taken: longer than the context, or against the content rules."""
        return bool(_DECLINED.search(self.code) or _CONTEXT.search(self.text))

    @property
    def about_n(self) -> bool:
        """Whether asking for several answers at once may be what is wrong."""
        return bool(_ABOUT_N.search(f"{self.code} {self.text}"))

    @property
    def no_template(self) -> bool:
        """Whether the model cannot chat: it has no template for turns."""
        return "chat template" in self.text.lower()

    @property
    def out_of_credit(self) -> bool:
        """Whether waiting is of no use."""
        return "insufficient_quota" in self.code or "billing" in self.code


def draw_seed(prompt: Prompt, draw: int) -> int:
    """Seed of a request's draw: of the run's seed, the text and the draw's number, so no other request matters."""
    text = f"{prompt.seed}\0{draw}\0{prompt.text}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little") % 2**31


def request_body(
    model: str, prompt: Prompt, sampling: SamplingOptions, n: int, draw: int, chat: bool, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """A request for `n` answers, the first of which is the prompt's draw number `draw`, which decides the seed.

    For `/chat/completions`, or without `chat` for `/completions`. `extra` goes over the fields; None takes one out.
    """
    body: dict[str, Any] = {"model": model, "max_tokens": sampling.max_tokens, "temperature": sampling.temperature}
    body["seed"] = draw_seed(prompt, draw)
    if sampling.temperature > 0:
        body["top_p"] = sampling.top_p
    if n > 1:
        body["n"] = n
    plain_text = prompt.messages[0][0] == "text"
    # After examples every answer is one line; a model that follows instructions may begin otherwise.
    if plain_text or not chat or any(role == "assistant" for role, _ in prompt.messages):
        body["stop"] = ["\n"]
    if chat:
        turns = [("user", content) if role == "text" else (role, content) for role, content in prompt.messages]
        body["messages"] = [{"role": role, "content": content} for role, content in turns]
    else:
        body["prompt"] = "\n".join(content for _, content in prompt.messages) + ("" if plain_text else "\n")
    return {name: value for name, value in {**body, **extra}.items() if value is not None}


def prompt_size(prompt: Prompt) -> int:
    """Tokens of a prompt, estimated on the high side."""
    size = sum(len(content.encode("utf-8", "surrogatepass")) for _, content in prompt.messages)
    return size // BYTES_PER_TOKEN + TOKENS_PER_TURN * len(prompt.messages)


def answer_tokens(body: Mapping[str, Any]) -> int:
    """Tokens that a request's answers can have together."""
    limits = [body.get(name) for name in ("max_tokens", "max_completion_tokens")]
    return body.get("n", 1) * max((limit for limit in limits if isinstance(limit, int)), default=0)


def read_answer(raw: bytes, n: int, prompt_tokens: int) -> Answer:
    """The texts of a server's answer by their index, `n` at most; `prompt_tokens` where it does not count."""
    content = _json(raw)
    try:
        choices = content["choices"]
        if all(type(choice.get("index")) is int for choice in choices):
            choices.sort(key=lambda choice: choice["index"])
        texts = tuple(_text(choice) for choice in choices[:n])
    except (AttributeError, KeyError, TypeError):
        texts = ()
    if not texts:
        raise NonsenseError(f"answer without choices that hold text: {plain(raw)}")
    usage = content.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    estimate = sum(len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN + 1 for text in texts)
    return Answer(
        texts,
        _count(counts.get("prompt_tokens"), prompt_tokens),
        _count(counts.get("completion_tokens"), estimate),
        plain(content.get("model") or "", 100),
    )


def error_in(raw: bytes) -> ServerError | None:
    """The error object of a body, whatever status it came with; None where there is none.

    Takes OpenAI's shape (`error`: object or text), vLLM's older one (`object`: error) and FastAPI's (`detail`).
    """
    try:
        content = _json(raw)
    except NonsenseError:
        return None
    error = content.get("error") or (content if content.get("object") == "error" else content.get("detail"))
    if not error or content.get("choices"):
        return None
    if not isinstance(error, dict):
        return ServerError(plain(error), "")
    codes = [error.get(name) for name in ("code", "type", "param", "status")]
    numbers = [code for code in codes if type(code) is int and 400 <= code < 600]
    text = error.get("message") or error.get("msg") or error
    return ServerError(
        plain(text), " ".join(str(code).lower() for code in codes if code), numbers[0] if numbers else None
    )


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that a server asks to wait (`retry-after-ms`, or `retry-after` as seconds or HTTP date), if it does."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        try:
            seconds = float(text) / unit
        except ValueError:
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        moment = parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())


def models_in(raw: bytes) -> list[tuple[str, str]]:
    """Names and owners of the models in a server's list; none where it is no list."""
    try:
        return [(plain(entry["id"], 80), plain(entry.get("owned_by") or "", 80)) for entry in json.loads(raw)["data"]]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []


def listed(names: Sequence[str]) -> str:
    """The first names, for a message."""
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def plain(text: object, most: int = 300) -> str:
    """Text from outside as one printable line of a message."""
    if isinstance(text, bytes):
        text = text[: 4 * most].decode("utf-8", "replace")
    line = " ".join(str(text).split())
    line = "".join(char if char.isprintable() else "?" for char in line)
    return line if len(line) <= most else f"{line[:most]}…"


def _json(raw: bytes) -> dict[str, Any]:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        raise NonsenseError(f"answer that is no JSON: {plain(raw, 120) or 'nothing at all'}") from None
    if not isinstance(content, dict):
        raise NonsenseError(f"answer that is no JSON object: {plain(raw, 120)}")
    return content


def _text(choice: dict[str, Any]) -> str:
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else choice["text"]
    if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content)
    if not isinstance(content, str | None):
        raise TypeError
    # None is a refusal, or all tokens went into thinking: an answer that says nothing.
    return content or ""


def _count(value: object, estimate: int) -> int:
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else min(estimate, MOST_TOKENS)


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
    """A request with its line break: its key, and the body that the engine `openai` would send."""
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

    `n` answers were asked for. Takes the output and error files of OpenAI's Batch API and its like, and those of
    `vllm run-batch`, in whose first releases `response` was the body itself.
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
