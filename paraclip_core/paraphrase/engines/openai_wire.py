"""Requests and answers of OpenAI's HTTP interface as bytes, for the engine `openai` and for batch files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paraclip_core.config import SamplingOptions
from paraclip_core.paraphrase.protocol import Prompt

__all__ = [
    "Answer",
    "NonsenseError",
    "ServerError",
    "answer_tokens",
    "draw_seed",
    "error_in",
    "listed",
    "models_in",
    "plain",
    "prompt_size",
    "read_answer",
    "request_body",
]

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
    """A request for `n` answers, the first of which is the prompt's draw number `draw`.

    Args:
        model: the model's name at the server.
        prompt: chat turns; or plain text, which `chat` sends as the user's turn.
        sampling: how to draw.
        n: answers to ask for.
        draw: decides the seed.
        chat: body for `/chat/completions`, else for `/completions`.
        extra: fields to put over these; None takes a field out.
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
    """The texts of a server's answer in the order of their index, `n` at most.

    Args:
        raw: the whole body.
        n: answers that were asked for.
        prompt_tokens: estimate, for servers that do not count.

    Raises:
        NonsenseError: it is no such answer.
    """
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
