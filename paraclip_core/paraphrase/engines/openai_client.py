"""The client of an OpenAI-compatible server: one request, and what its failure means.

The `openai` package's client retries, waits as `Retry-After` says and keeps the connections. Importing it takes a
second, so this module is imported on first use.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai

from paraclip_core.errors import AwayError, EngineError, FailedError, RefusedError
from paraclip_core.paraphrase.engines import Completion
from paraclip_core.paraphrase.engines.chat import DECLINED, NO_ANSWER, QUOTED, read_completion
from paraclip_core.text_safety import one_line

log = logging.getLogger(__name__)

ABOUT_ONE = frozenset((400, 403, 413, 422, 451))
"""Statuses that may concern one prompt: servers and gateways report violations of their rules in many ways."""
PASSING = frozenset((408, 409, 425, 429))
"""Statuses below 500 of transient failures."""
TOO_MANY = 429
BROKEN = 500
TIMEOUT_SECONDS = 600.0
"""Longest time without a byte of an answer, which a server that queues requests may need."""
SECRETS = Path("/run/secrets")
"""Where Docker and Compose put a container's secrets, one file each."""


class Client:
    """A connection to one server. Use it from one event loop."""

    def __init__(self, base_url: str, api_key_env: str, retries: int, at: str) -> None:
        """`at`: where these options are, for messages."""
        self._url, self._variable, self._at = base_url, api_key_env, at
        # Read once: a file may change, and the key that was sent is the one to redact.
        self._key = _key(api_key_env)
        # Their log line for every request would flood a stage's log.
        for name in ("httpx2", "openai"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # A proxy for outside traffic does not apply to a server on this machine.
        outside = urlsplit(base_url).hostname not in ("localhost", "127.0.0.1", "::1")
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=self._key or "none",
            timeout=TIMEOUT_SECONDS,
            max_retries=retries,
            # With hundreds of concurrent requests, the default transport takes four times the CPU time.
            http_client=openai.DefaultAioHttpClient(trust_env=outside),
        )

    async def models(self) -> list[Any]:
        """The models that the server lists; empty if it has no list."""
        try:
            return [model for model in (await self._client.models.list()).data or () if hasattr(model, "id")]
        except openai.AuthenticationError as error:
            raise self._failure(error) from None
        except openai.APIConnectionError as error:
            raise AwayError(
                f"{self._url} cannot be reached: {one_line(error.__cause__ or error, QUOTED)}; start the "
                f"server, or set {self._at}.openai.base_url to its address"
            ) from None
        except (openai.APIError, ValueError, AttributeError):
            return []

    async def complete(self, body: dict[str, Any], prompt_tokens: int) -> Completion:
        """The answers to one request; `prompt_tokens` is used if the response does not report them.

        Raises RefusedError or FailedError if the prompt may be at fault, AwayError if the server takes no request now,
        and EngineError if it takes none as it is asked.
        """
        nonsense = ""
        # Gateways pass a failure on with status 200, which the client does not retry.
        for _ in range(2):
            try:
                text = await self._client.post("/chat/completions", cast_to=str, body=body)
                return read_completion(json.loads(text), body.get("n", 1), prompt_tokens)
            except openai.APIError as error:
                if _declines(error):
                    log.info("declined: %s", self._failure(error))
                    return NO_ANSWER
                # A chained error would log the server's text, which may repeat the key.
                raise self._failure(error) from None
            except (ValueError, RecursionError) as error:
                nonsense = one_line(self._without_key(str(error)), QUOTED)
        raise FailedError(f"{self._url} sent an invalid response: {nonsense}")

    async def close(self) -> None:
        await self._client.close()

    def _failure(self, error: openai.APIError) -> EngineError:
        url, variable = self._url, self._variable
        if not isinstance(error, openai.APIStatusError):
            return AwayError(f"{url} does not answer: {one_line(error.__cause__ or error, QUOTED)}")
        status, text = error.status_code, one_line(self._without_key(error.response.text), QUOTED) or "(empty response)"
        refusal, hint = f"{url} refuses the request (status {status}): {text}", ""
        if error.code == "insufficient_quota":
            return EngineError(f"{url} no longer answers: {text}; check the account and run again")
        if status in ABOUT_ONE:
            return RefusedError(refusal)
        if status in PASSING or status >= BROKEN:
            if status == TOO_MANY:
                hint = f"; set {self._at}.openai.requests_per_minute to what the server allows"
            return (FailedError if status == BROKEN else AwayError)(f"{url} failed (status {status}): {text}{hint}")
        hint = f"does {self._at}.openai.base_url end as the server expects, usually in /v1?"
        if status == 401:
            hint = f"put a valid key into the environment variable {variable} or the file {SECRETS / variable}"
            hint += "" if self._key else "; neither holds one"
        return EngineError(f"{refusal}; {hint}")

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _declines(error: openai.APIError) -> bool:
    """Whether the server says that a prompt is against its rules."""
    if not isinstance(error, openai.APIStatusError):
        return False
    return error.status_code in ABOUT_ONE and DECLINED.search(error.response.text) is not None


def _key(variable: str) -> str:
    """Read the key from an environment variable, or else from the file of the same name below /run/secrets.

    Empty if there is neither: some servers need none. Raises EngineError if the file cannot be read or its text cannot
    be a key.
    """
    place, key = f"environment variable {variable}", os.environ.get(variable, "").strip()
    if not key:
        place, key = f"file {SECRETS / variable}", _secret(SECRETS / variable)
    if not (key.isascii() and key.isprintable()):
        raise EngineError(f"the key in the {place} holds characters that no key can have; expected one line of ASCII")
    return key


def _secret(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise EngineError(
            f"the file {path} cannot be read: {error.strerror}; expected a file with the key alone that user "
            f"{os.geteuid()} may read: fix it, or set the environment variable {path.name}"
        ) from None
