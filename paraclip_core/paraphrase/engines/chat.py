"""OpenAI's chat interface: the bodies of requests and responses, which servers and batch files share."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from paraclip_core.paraphrase.engines import Completion, Prompt, SamplingOptions
from paraclip_core.text_safety import one_line

QUOTED = 300
"""Maximum characters of a server's answer that a message quotes."""
BYTES_PER_TOKEN = 3
"""A conservative estimate: English has four or more."""
TOKENS_PER_TURN = 8
MOST_TOKENS = 10_000_000
"""A larger count is a mistake of the server's."""
OURS = frozenset(("messages", "model", "n", "prompt", "seed", "stream"))
"""Fields of a request body that are filled here."""
NO_ANSWER = Completion((), 0, 0)
"""The completion of a prompt that the server declines; the filters reject it by name."""
DECLINED = re.compile(
    r"content[ _-](?:filter|policy|management|exists risk)|data_inspection_failed|moderation|flagged"
    r"|usage (?:policy|policies|guidelines)",
    re.I,
)
"""Codes and words with which servers decline a prompt that is against their rules."""


def draw_seed(prompt: Prompt, draw: int) -> int:
    """Seed of a draw, from the run's seed, the text and the draw's number, so no other request matters."""
    text = f"{prompt.seed}\0{draw}\0{prompt.text}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little") % 2**31


def request_body(
    model: str, prompt: Prompt, sampling: SamplingOptions, n: int, draw: int, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Body of a request for `n` answers, starting at the prompt's draw number `draw`, which decides the seed.

    `extra` overrides the fields; None removes one.
    """
    messages = [{"role": role, "content": content} for role, content in prompt.messages]
    body: dict[str, Any] = {"model": model, "max_tokens": sampling.max_tokens, "temperature": sampling.temperature}
    body |= {"seed": draw_seed(prompt, draw), "messages": messages}
    if sampling.temperature > 0:
        body["top_p"] = sampling.top_p
    if n > 1:
        body["n"] = n
    if prompt.one_line:
        body["stop"] = ["\n"]
    return {name: value for name, value in {**body, **extra}.items() if value is not None}


def prompt_size(prompt: Prompt) -> int:
    """Tokens of a prompt, a high estimate."""
    size = sum(len(content.encode("utf-8", "surrogatepass")) for _, content in prompt.messages)
    return size // BYTES_PER_TOKEN + TOKENS_PER_TURN * len(prompt.messages)


def completion_size(body: Mapping[str, Any]) -> int:
    """Maximum tokens of a request's answers together."""
    limits = [body.get(name) for name in ("max_tokens", "max_completion_tokens")]
    return body.get("n", 1) * max((limit for limit in limits if isinstance(limit, int)), default=0)


def read_completion(content: Any, n: int, prompt_tokens: int) -> Completion:
    """The texts of a response by index, `n` at most; `prompt_tokens` is used if the response does not report them.

    Raises ValueError if `content` is not a completion.
    """
    try:
        choices = content["choices"]
        if all(type(choice.get("index")) is int for choice in choices):
            choices.sort(key=lambda choice: choice["index"])
        texts = tuple(_text(choice["message"].get("content")) for choice in choices[:n])
    except (AttributeError, KeyError, TypeError):
        texts = ()
    if not texts:
        raise ValueError(f"expected choices that hold text: {one_line(content, QUOTED)}")
    usage = content.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    estimate = sum(len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN + 1 for text in texts)
    return Completion(
        texts,
        _count(counts.get("prompt_tokens"), prompt_tokens),
        _count(counts.get("completion_tokens"), estimate),
    )


def _text(content: object) -> str:
    if not isinstance(content, str | None):
        raise TypeError
    # None is a refusal, or all tokens were spent on thinking: an empty answer.
    return content or ""


def _count(value: object, estimate: int) -> int:
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else min(estimate, MOST_TOKENS)
