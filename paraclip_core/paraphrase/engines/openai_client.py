"""One request to an OpenAI-compatible server: sent, timed, sent again, and its failures told apart."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from paraclip_core.engine_options import OpenAIOptions
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.engines.http_limits import Pace, Rest, backoff, retry_after
from paraclip_core.paraphrase.engines.openai_wire import (
    Answer,
    NonsenseError,
    Said,
    error_in,
    most_said,
    plain,
    read_answer,
)

__all__ = ["DeclinedError", "GaveUpError", "OpenAIClient", "RefusedError"]

log = logging.getLogger(__name__)

MOST_BYTES = 2_000_000
"""No answer of at most 64 times 4,096 tokens is larger."""
LONGEST_WAIT = 600.0
"""A server that asks to wait longer is not waited for."""
BUSY = frozenset((408, 409, 425, 429))
SECRET = 8
"""A shorter key is a stand-in like `EMPTY`, and could be part of any text."""


class GaveUpError(Exception):
    """A request failed with all its retries; says how the last one failed."""


class DeclinedError(Exception):
    """The server does not take this prompt, which is too long or against its rules; in the server's words."""


class RefusedError(EngineError):
    """The server says that the request is wrong, which trying again does not mend."""

    def __init__(self, text: str, status: int, said: Said) -> None:
        super().__init__(text)
        self.status, self.said = status, said


class _TryAgainError(Exception):
    """An attempt failed in a way that may pass."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class OpenAIClient:
    """Connections to one server. Used from one event loop."""

    def __init__(self, model: str, options: OpenAIOptions) -> None:
        """Reads the key from the environment.

        Raises:
            EngineError: the key is not one that a header can carry.
        """
        self._model, self._options = model, options
        self._key = _key(options.api_key_env)
        self._spelt = _spellings(self._key)
        # Its own log line for every request would drown a stage's log.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else None,
            # _send sets one deadline over the whole request.
            timeout=None,
            limits=httpx.Limits(max_connections=options.concurrency, max_keepalive_connections=options.concurrency),
            # A proxy for the outside world is none for a server on this machine.
            trust_env=urlsplit(options.base_url).hostname not in ("localhost", "127.0.0.1", "::1"),
        )
        self._pace = Pace(options.requests_per_minute, options.tokens_per_minute)
        self._failures = 0

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def ask(self, path: str, body: Mapping[str, Any], prompt_tokens: int, rest: Rest) -> Answer:
        """The answer to one request, which is sent again as often as the options allow.

        Args:
            path: `/chat/completions` or `/completions`.
            body: the request.
            prompt_tokens: estimate, for the pace and for servers that do not count.
            rest: waits; may raise to end the waiting.

        Raises:
            RefusedError: the request is wrong.
            EngineError: the server cannot be used at all: key, credit or address are wrong.
            DeclinedError: this prompt is not taken.
            GaveUpError: all attempts failed.
        """
        tokens = prompt_tokens + most_said(body)
        for attempt in range(self._options.retries + 1):
            await self._pace.turn(tokens, rest)
            try:
                answer = await self._attempt(path, body, prompt_tokens)
            except _TryAgainError as failure:
                self._note(failure)
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

    async def _attempt(self, path: str, body: Mapping[str, Any], prompt_tokens: int) -> Answer:
        status, headers, raw = await self._send("POST", path, json.dumps(body).encode())
        said = error_in(raw)
        # Gateways pass a failure on with status 200.
        status = (said.status or 503) if said and status < 300 else status
        if status < 300:
            try:
                return read_answer(raw, body.get("n", 1), prompt_tokens)
            except NonsenseError as error:
                raise _TryAgainError(str(error)) from error
        said = said or Said(plain(raw, 120) or "(without a word)", "")
        if said.out_of_credit:
            raise EngineError(
                f"{self._options.base_url} answers no more: {said.text}; see to the account and run again"
            )
        if status in BUSY or status >= 500:
            raise _TryAgainError(f"status {status}: {said.text}", self._wait(retry_after(headers)))
        raise await self._refusal(status, headers, said, path)

    async def _send(self, method: str, path: str, content: bytes = b"") -> tuple[int, httpx.Headers, bytes]:
        limit = self._options.timeout_seconds
        try:
            async with asyncio.timeout(limit):
                headers = {"Content-Type": "application/json"}
                url = self._options.base_url + path
                async with self._http.stream(method, url, content=content, headers=headers) as response:
                    return response.status_code, response.headers, self._hidden(await _read(response))
        except TimeoutError:
            raise _TryAgainError(f"no whole answer within timeout_seconds={limit:g}") from None
        except (httpx.RequestError, NonsenseError) as error:
            raise _TryAgainError(plain(self._hidden(str(error).encode())) or type(error).__name__) from error
        except httpx.InvalidURL as error:
            raise EngineError(f"paraphrase.openai.base_url cannot be used: {error}") from error

    async def _refusal(self, status: int, headers: httpx.Headers, said: Said, path: str) -> Exception:
        url, variable = self._options.base_url, self._options.api_key_env
        if 300 <= status < 400:
            to = plain(self._hidden(headers.get("location", "elsewhere").encode()))
            return EngineError(f"{url}{path} sends on to {to}; set paraphrase.openai.base_url to the right address")
        if status in (401, 403):
            key = f"the key in {variable}" if self._key else f"a request without key ({variable} is not set)"
            text = f"{url} refuses {key}: {said.text}; put a valid key into {variable} and run again"
            # Filters that stand before a server forbid single texts.
            return RefusedError(text, status, said) if status == 403 else EngineError(text)
        if status in (400, 413, 422) and (said.declines or status == 413):
            return DeclinedError(said.text)
        served = await self._served()
        hint = f"; paraphrase.model is {self._model!r}, the server has {served}" if served else ""
        if status in (404, 405):
            hint = hint or "; does paraphrase.openai.base_url end as the server wants it, usually in /v1?"
        return RefusedError(f"{url}{path} refuses the request (status {status}): {said.text}{hint}", status, said)

    async def _served(self) -> str:
        """The models that the server says it has, as text; empty where it does not say."""
        try:
            _, _, raw = await self._send("GET", "/models")
            names = [plain(entry["id"], 80) for entry in json.loads(raw)["data"]]
        except (_TryAgainError, EngineError, ValueError, LookupError, TypeError):
            return ""
        return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")

    def _wait(self, seconds: float | None) -> float | None:
        if seconds is not None and seconds > LONGEST_WAIT:
            raise EngineError(
                f"{self._options.base_url} asks to come back in {seconds / 60:.0f} minutes; everything answered is "
                "kept, run again then to go on from there"
            )
        return seconds

    def _note(self, failure: Exception) -> None:
        self._failures += 1
        # The 1st, 2nd, 4th, 8th …: enough to see what goes on.
        if not self._failures & (self._failures - 1):
            log.warning("%s failed %s times so far, last: %s", self._options.base_url, self._failures, failure)

    def _hidden(self, raw: bytes) -> bytes:
        """Without the key, which some servers repeat when they refuse it."""
        if len(self._key) < SECRET:
            return raw
        found = raw.replace(self._key.encode(), b"***")
        return self._spelt.sub(b"***", found) if b"\\" in found else found


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
