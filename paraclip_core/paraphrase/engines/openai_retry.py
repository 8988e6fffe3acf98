"""Requests to an OpenAI-compatible server: worded as it wants them, paced, timed, sent again, failures told apart."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from paraclip_core.config import SamplingOptions
from paraclip_core.engine_options import OpenAIOptions
from paraclip_core.errors import AwayError, EngineError
from paraclip_core.paraphrase.engines.base import Prompt
from paraclip_core.paraphrase.engines.openai_wire import (
    MOST_BYTES,
    Answer,
    NonsenseError,
    ServerError,
    answer_tokens,
    error_in,
    listed,
    models_in,
    plain,
    prompt_size,
    read_answer,
    request_body,
    retry_after,
)

log = logging.getLogger(__name__)

LONGEST_BACKOFF = 60.0
LONGEST_WAIT = 600.0
"""A server that asks to wait longer is not waited for."""
BUSY = frozenset((408, 409, 425, 429))
ABOUT_ONE = frozenset((400, 403, 413, 422, 451))
"""Statuses that may be about one prompt: servers and what stands before them have many words for their rules."""
CHAT, PLAIN = "/chat/completions", "/completions"
POOL = 8
"""Connections of one pool. For every request httpx looks at all pairs of a pool's connections."""
SECRET = 8
"""A shorter key is a stand-in like `EMPTY`, and could be part of any text."""

Rest = Callable[[float], Awaitable[None]]
"""Waits so many seconds; may raise to end the waiting."""


class GaveUpError(Exception):
    """A request failed with all its retries; says how the last one failed."""


class RefusedError(EngineError):
    """The server does not take a request, which trying again does not mend."""

    def __init__(self, text: str, status: int, reply: ServerError) -> None:
        super().__init__(text)
        self.status, self.reply = status, reply

    @property
    def about_one(self) -> bool:
        """Whether it may be this prompt that is not taken."""
        return self.reply.declines or self.status in ABOUT_ONE


class _TryAgainError(Exception):
    """An attempt failed in a way that may pass."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class Pace:
    """Spreads requests over time, so that no minute sees more of them, or more tokens, than is allowed.

    Each request gets the first free moment of both limits; there are no bursts, which a server that counts whole
    minutes would refuse. Used from one event loop.
    """

    def __init__(self, requests_per_minute: float, tokens_per_minute: float) -> None:
        """0 stands for no limit."""
        self._seconds_per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._seconds_per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._next_request = self._next_token = self._quiet_until = 0.0

    async def turn(self, tokens: float, rest: Rest) -> None:
        """Wait for the turn of a request of about so many tokens."""
        while True:
            now = time.monotonic()
            at = max(now, self._next_request, self._next_token, self._quiet_until)
            self._next_request = at + self._seconds_per_request
            self._next_token = at + tokens * self._seconds_per_token
            if at > now:
                await rest(at - now)
            # A turn within a pause that was asked for meanwhile is none: all of them at its end would be a burst.
            if self._quiet_until <= time.monotonic():
                return

    def correct(self, estimated: float, counted: float) -> None:
        """Put right what a request was taken to need."""
        self._next_token += (counted - estimated) * self._seconds_per_token

    def pause(self, seconds: float) -> None:
        """Let no request go out for a while: the server asked for it."""
        self._quiet_until = max(self._quiet_until, time.monotonic() + seconds)


class OpenAIClient:
    """Connections to a server, or to several that serve the same, and what is learned about it from its answers.

    Used from one event loop.
    """

    def __init__(self, model: str, options: OpenAIOptions, urls: Sequence[str] = ()) -> None:
        """`urls` take the place of the options' address; each request goes to the least busy of them."""
        self._model, self._options = model, options
        self._key = _key(options.api_key_env)
        self._spelled = _spellings(self._key)
        # Its own log line for every request would drown a stage's log.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        urls = urls or [options.base_url]
        count = max(len(urls), -(-options.concurrency // POOL))
        http = {
            "headers": {"Authorization": f"Bearer {self._key}"} if self._key else None,
            # _send sets one deadline over the whole request.
            "timeout": None,
            "limits": httpx.Limits(max_connections=POOL, max_keepalive_connections=POOL),
            # Reading the certificates takes long enough to do it once.
            "verify": httpx.create_ssl_context(),
            # A proxy for the outside world is none for a server on this machine.
            "trust_env": urlsplit(urls[0]).hostname not in ("localhost", "127.0.0.1", "::1"),
        }
        self._pools = [(urls[n % len(urls)], httpx.AsyncClient(**http)) for n in range(count)]
        self._under_way = [0] * count
        self._pace = Pace(options.requests_per_minute, options.tokens_per_minute)
        self._failures = 0
        self._answering_models = {"", model}
        self.answered: set[str] = set()
        """Paths that were ever answered."""
        # Whether a request gets one answer only; None: not known yet.
        self._one_by_one: dict[str, bool | None] = dict.fromkeys((CHAT, PLAIN), None if options.ask_for_n else True)
        self._chat_for_plain = self._plain_for_chat = False

    async def close(self) -> None:
        """Close the connections."""
        for _, http in self._pools:
            await http.aclose()

    def most(self, prompt: Prompt, sampling: SamplingOptions, draws: int) -> tuple[int, int]:
        """Tokens that are read and written for so many draws of a prompt, at most."""
        # A server that gives one answer at a time reads the prompt for each.
        reads = draws if self._one_by_one[self._path(prompt)] is not False else 1
        return prompt_size(prompt) * reads, answer_tokens(self._body(prompt, sampling, draws, 0))

    async def ask(self, prompt: Prompt, sampling: SamplingOptions, draws: int, draw: int, rest: Rest) -> Answer:
        """Some of a prompt's draws, `draws` at most, from number `draw` on: as many as the server gives at once."""
        while True:
            path = self._path(prompt)
            n = 1 if self._one_by_one[path] else draws
            try:
                answer = await self._retried(path, self._body(prompt, sampling, n, draw), prompt_size(prompt), rest)
            except RefusedError as error:
                if not self._adapt(path, n, error):
                    raise
            else:
                self._learn(path, n, answer)
                return answer

    def _path(self, prompt: Prompt) -> str:
        plain_text = not self._chat_for_plain if prompt.messages[0][0] == "text" else self._plain_for_chat
        return PLAIN if plain_text else CHAT

    def _body(self, prompt: Prompt, sampling: SamplingOptions, n: int, draw: int) -> dict[str, Any]:
        chat = self._path(prompt) == CHAT
        return request_body(self._model, prompt, sampling, n, draw, chat, self._options.extra_body)

    def _adapt(self, path: str, n: int, error: RefusedError) -> bool:
        """Whether the same can be asked for in another way."""
        # Where several at once, or this path, were answered before, it is this prompt that is not taken.
        if n > 1 and self._one_by_one[path] is not False and error.status in (400, 422) and error.reply.about_n:
            log.warning("asking for one answer at a time: %s", error)
            self._one_by_one[path] = True
        elif path in self.answered or self._chat_for_plain or self._plain_for_chat:
            return False
        elif path == PLAIN and error.status != 403:
            log.warning("plain text is asked for as a chat turn: %s", error)
            self._chat_for_plain = True
        elif error.reply.no_template:
            log.warning("chat turns are asked for as plain text: %s", error)
            self._plain_for_chat = True
        else:
            return False
        return True

    def _learn(self, path: str, n: int, answer: Answer) -> None:
        self.answered.add(path)
        if n > 1 and self._one_by_one[path] is None:
            self._one_by_one[path] = len(answer.texts) == 1
        # Some servers take any name and answer with what they have, and aliases move on to other models.
        if answer.model not in self._answering_models:
            self._answering_models.add(answer.model)
            log.warning(
                "%s was asked for the model %r and says that %r answered; if they are not the same, name it in "
                "paraphrase.model or paraphrase.openai.revision, so that the cache can tell its answers apart",
                self._options.base_url,
                self._model,
                answer.model,
            )

    async def _retried(self, path: str, body: Mapping[str, Any], prompt_tokens: int, rest: Rest) -> Answer:
        tokens = prompt_tokens + answer_tokens(body)
        for attempt in range(self._options.retries + 1):
            await self._pace.turn(tokens, rest)
            try:
                answer = await self._attempt(path, body, prompt_tokens)
            except _TryAgainError as failure:
                self._failures += 1
                # The 1st, 2nd, 4th, 8th …: enough to see what goes on.
                if not self._failures & (self._failures - 1):
                    log.warning("%s failed %s times so far, last: %s", self._options.base_url, self._failures, failure)
                # The others are held back even where this request is not sent again.
                if failure.wait:
                    self._pace.pause(failure.wait)
                if attempt == self._options.retries:
                    raise GaveUpError(str(failure)) from failure
                await rest(backoff(self._options.backoff_seconds, attempt))
            else:
                self._pace.correct(tokens, answer.prompt_tokens + answer.completion_tokens)
                return answer
        raise AssertionError("unreachable")

    async def check(self) -> None:
        """Look whether the server would answer, by its list of models, where it has one; nothing is asked for."""
        try:
            status, _, raw = await self._send("GET", "/models")
        except _TryAgainError as failure:
            raise AwayError(
                f"{self._options.base_url} cannot be reached: {failure}; start the server, or set "
                "paraphrase.openai.base_url to its address"
            ) from failure
        if status in (401, 403):
            raise self._no_entry(status, error_in(raw) or ServerError(plain(raw, 120), ""))
        models = models_in(raw) if status == 200 else []
        # llama.cpp's server takes any name, Ollama's a name without its tag.
        names = [name for name, owner in models if owner != "llamacpp"]
        if names and not any(name == self._model or name.startswith(f"{self._model}:") for name in names):
            raise EngineError(
                f"{self._options.base_url} has no model {self._model!r}, but {listed(names)}; set paraphrase.model to "
                "one of them, or paraphrase.openai.base_url to the server that has it"
            )

    async def _attempt(self, path: str, body: Mapping[str, Any], prompt_tokens: int) -> Answer:
        status, headers, raw = await self._send("POST", path, json.dumps(body).encode())
        reply = error_in(raw)
        # Gateways pass a failure on with status 200.
        status = (reply.status or 503) if reply and status < 300 else status
        if status < 300:
            try:
                return read_answer(raw, body.get("n", 1), prompt_tokens)
            except NonsenseError as error:
                raise _TryAgainError(str(error)) from error
        reply = reply or ServerError(plain(raw, 120) or "(without a word)", "")
        if reply.out_of_credit:
            raise EngineError(
                f"{self._options.base_url} answers no more: {reply.text}; see to the account and run again"
            )
        if status in BUSY or status >= 500:
            raise _TryAgainError(f"status {status}: {reply.text}", self._wait(headers))
        raise await self._refusal(status, headers, reply, path)

    async def _send(self, method: str, path: str, content: bytes = b"") -> tuple[int, httpx.Headers, bytes]:
        limit = self._options.timeout_seconds
        number = min(range(len(self._pools)), key=self._under_way.__getitem__)
        url, http = self._pools[number]
        self._under_way[number] += 1
        try:
            async with asyncio.timeout(limit):
                headers = {"Content-Type": "application/json"}
                async with http.stream(method, url + path, content=content, headers=headers) as response:
                    return response.status_code, response.headers, self._hidden(await _read(response))
        except TimeoutError:
            raise _TryAgainError(f"no whole answer within timeout_seconds={limit:g}") from None
        except (httpx.RequestError, NonsenseError) as error:
            raise _TryAgainError(plain(self._hidden(str(error).encode())) or type(error).__name__) from error
        except httpx.InvalidURL as error:
            raise EngineError(f"paraphrase.openai.base_url cannot be used: {error}") from error
        finally:
            self._under_way[number] -= 1

    async def _refusal(self, status: int, headers: httpx.Headers, reply: ServerError, path: str) -> Exception:
        url = self._options.base_url
        if 300 <= status < 400:
            to = plain(self._hidden(headers.get("location", "elsewhere").encode()))
            return EngineError(f"{url}{path} sends on to {to}; set paraphrase.openai.base_url to the right address")
        if status in (401, 403):
            return self._no_entry(status, reply)
        if status in (400, 413, 422) and reply.declines:
            return RefusedError(
                f"{url} takes none of the prompts: {reply.text}; serve the model with a longer context, or choose "
                "shorter prompts (paraphrase.prompts)",
                status,
                reply,
            )
        served = await self._served()
        hint = f"; paraphrase.model is {self._model!r}, the server has {served}" if served else ""
        if status in (404, 405):
            hint = hint or "; does paraphrase.openai.base_url end as the server wants it, usually in /v1?"
        return RefusedError(f"{url}{path} refuses the request (status {status}): {reply.text}{hint}", status, reply)

    def _no_entry(self, status: int, reply: ServerError) -> EngineError:
        variable = self._options.api_key_env
        key = f"the key in {variable}" if self._key else f"a request without key ({variable} is not set)"
        text = f"{self._options.base_url} refuses {key}: {reply.text}; put a valid key into {variable} and run again"
        # Filters that stand before a server forbid single texts.
        return RefusedError(text, status, reply) if status == 403 else EngineError(text)

    async def _served(self) -> str:
        """The models that the server says it has, as text; empty where it does not say."""
        try:
            _, _, raw = await self._send("GET", "/models")
        except (_TryAgainError, EngineError):
            return ""
        return listed([name for name, _ in models_in(raw)])

    def _wait(self, headers: httpx.Headers) -> float | None:
        seconds = retry_after(headers)
        if seconds is not None and seconds > LONGEST_WAIT:
            raise EngineError(
                f"{self._options.base_url} asks to come back in {seconds / 60:.0f} minutes; everything answered is "
                "kept, run again then to go on from there"
            )
        return seconds

    def _hidden(self, raw: bytes) -> bytes:
        """Without the key, which some servers repeat when they refuse it."""
        if len(self._key) < SECRET:
            return raw
        hidden = raw.replace(self._key.encode(), b"***")
        return self._spelled.sub(b"***", hidden) if b"\\" in hidden else hidden


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise EngineError(
            f"the key in the environment variable {variable} holds characters that no key has; set it anew"
        )
    return key


def _spellings(key: str) -> re.Pattern[bytes]:
    """The key as JSON may hold it: PHP writes `\\/`, and any character may be `\\u0041`."""
    return re.compile(b"".join(rb"(?:\\?%b|\\u00(?i:%02x))" % (re.escape(bytes([c])), c) for c in key.encode()))


async def _read(response: httpx.Response) -> bytes:
    raw = bytearray()
    async for part in response.aiter_bytes():
        raw += part
        if len(raw) > MOST_BYTES:
            raise NonsenseError(f"an answer of more than {MOST_BYTES} bytes")
    return bytes(raw)


def backoff(base: float, attempt: int) -> float:
    """Seconds to wait after attempt 0, 1, …: `base` doubled each time, up to a minute, less up to a half at random."""
    # Where many wait for the same server, equal waits would bring them all back at once.
    return min(LONGEST_BACKOFF, base * 2 ** min(attempt, 30)) * random.uniform(0.5, 1.0)
