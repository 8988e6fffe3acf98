"""Any OpenAI-compatible server as an engine: many requests at once, a spending cap, and prompts that get no answer.

A request is tried again by the client alone (`openai_client.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from paraclip_core.errors import AwayError, BudgetError, EngineError, FailedError, RefusedError
from paraclip_core.lifetime import LoopThread
from paraclip_core.options import OPERATIONAL, Options, json_fields
from paraclip_core.paraphrase.engines import (
    Completion,
    EngineContext,
    EngineFacts,
    EngineOptions,
    Prompt,
    SamplingOptions,
)
from paraclip_core.paraphrase.engines.chat import NO_ANSWER, OURS, completion_size, prompt_size, request_body
from paraclip_core.text_safety import one_line

if TYPE_CHECKING:
    from paraclip_core.paraphrase.engines.openai_client import Client

log = logging.getLogger(__name__)

MILLION = 1_000_000
FAILURES_IN_A_ROW = 8
"""After this many failures without an answer in between, the run stops."""
SILENT = (
    f"{{url}} gave {FAILURES_IN_A_ROW} empty answers. A model that thinks first needs more {{at}}.sampling.max_tokens, "
    "or its thinking turned off in {at}.openai.extra_body"
)
PAUSE_SECONDS = 0.005
"""Interval between checks for room."""
QUIET_SECONDS = 1.0
"""The consumer gets a turn at least this often, to store completions that arrived."""
SHOWN = 5
"""Maximum captions that a message names."""


class OpenAIOptions(Options):
    """A server that speaks OpenAI's HTTP interface: `vllm serve`, llama.cpp's server, a vendor."""

    base_url: str = Field(default="http://127.0.0.1:8000/v1", json_schema_extra=OPERATIONAL)
    """Address up to and including the version; `/chat/completions` is appended to it. The result depends on the model,
    not on where it is served."""
    extra_body: dict[str, Any] = Field(default={})
    """Fields to add to every request's body, for what only this server or model knows (`reasoning_effort`,
    `chat_template_kwargs`); `null` removes a default field (`max_tokens: null`, `seed: null`, and `n: null` for a
    server that cannot give several answers at once: they are then requested one after another)."""
    api_key_env: str = Field(default="OPENAI_API_KEY", json_schema_extra=OPERATIONAL)
    """Name of the environment variable that holds the key, or of a file under `/run/secrets`. The key itself is never
    an option. Servers without keys need none."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = Field(default=16, json_schema_extra=OPERATIONAL)
    """Maximum concurrent requests."""
    requests_per_minute: Annotated[float, Field(ge=0)] = Field(default=0, json_schema_extra=OPERATIONAL)
    """Maximum requests per minute in each process; 0: no limit."""
    retries: Annotated[int, Field(ge=0, le=100)] = Field(default=6, json_schema_extra=OPERATIONAL)
    """How often a request is retried if the server is busy, fails or hangs."""
    price_per_million_prompt_tokens: Annotated[float, Field(ge=0)] = Field(default=0, json_schema_extra=OPERATIONAL)
    """Price per million prompt tokens, in any currency."""
    price_per_million_completion_tokens: Annotated[float, Field(ge=0)] = Field(default=0, json_schema_extra=OPERATIONAL)
    """Price per million completion tokens, in the same currency."""
    max_spend: Annotated[float, Field(ge=0)] = Field(default=0, json_schema_extra=OPERATIONAL)
    """The run stops before this model's answers in the answers cache, earlier runs included, have cost more than
    this. All answers are kept. Concurrent processes see each other's spending when they start. 0: no cap."""

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, url: str) -> str:
        # No message quotes the address: a secret in it must not reach a log.
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected an address like http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must hold no user, password or `?`; put the key into the variable that api_key_env names")
        url = url.rstrip("/")
        if url.endswith("/completions"):
            raise ValueError("must end before /chat/completions, usually in /v1")
        return url

    @field_validator("extra_body")
    @classmethod
    def _not_ours(cls, fields: dict[str, Any]) -> dict[str, Any]:
        # These may be removed for a vendor that knows no seed or gives one answer at a time.
        ours = sorted(n for n in fields.keys() & OURS if n not in ("n", "seed") or fields[n] is not None)
        if ours:
            raise ValueError(f"{', '.join(ours)} cannot be set here: paraclip fills these fields itself")
        return json_fields(fields)

    @field_validator("api_key_env")
    @classmethod
    def _variable(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            raise ValueError("expected the name of an environment variable (capitals, digits, _), never the key itself")
        return name

    @model_validator(mode="after")
    def _priced(self) -> OpenAIOptions:
        if self.max_spend and not self.priced:
            raise ValueError(
                "max_spend needs price_per_million_prompt_tokens and price_per_million_completion_tokens to compute "
                "the cost"
            )
        limits = [self.extra_body.get(name) for name in ("max_tokens", "max_completion_tokens")]
        if self.max_spend and "max_tokens" in self.extra_body and not any(isinstance(limit, int) for limit in limits):
            raise ValueError(
                "max_spend needs an upper bound on the cost of an answer; extra_body removes max_tokens, so add "
                "max_completion_tokens to it"
            )
        return self

    @property
    def priced(self) -> bool:
        return bool(self.price_per_million_prompt_tokens or self.price_per_million_completion_tokens)

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Price of this many tokens, in the currency of the prices."""
        prompt = prompt_tokens * self.price_per_million_prompt_tokens
        return (prompt + completion_tokens * self.price_per_million_completion_tokens) / MILLION


class Limits:
    """Lets requests pass within the spending cap and the rate limit. Used from one event loop.

    A request reserves its maximum cost, so concurrent requests cannot exceed the cap together either.
    """

    def __init__(self, options: OpenAIOptions, cap: str) -> None:
        self._options, self._cap = options, cap
        self.spent = 0.0
        """Cost of all answers so far, in the currency of the prices."""
        self._reserved, self._in_flight = 0.0, 0
        self._seconds, self._next = 60 / (options.requests_per_minute or math.inf), 0.0

    def charge(self, prompt_tokens: float, completion_tokens: float) -> None:
        """Count tokens that were paid for."""
        self.spent += self._options.cost(prompt_tokens, completion_tokens)

    @asynccontextmanager
    async def request(self, prompt_tokens: float, completion_tokens: float) -> AsyncIterator[None]:
        """Wait until a request may be sent. There are no bursts, which servers would refuse."""
        cost, cap = self._options.cost(prompt_tokens, completion_tokens), self._options.max_spend
        while cap and self.spent + self._reserved + cost > cap:
            if self.spent + cost > cap:
                raise BudgetError(
                    f"the spending cap is reached: {self.spent:.6g} of {self._cap}={cap:g} is spent "
                    f"(earlier runs included), and another request may cost {cost:.3g}. Everything answered is kept; "
                    "raise max_spend and run again to continue"
                )
            # Only requests in flight are in the way.
            await asyncio.sleep(PAUSE_SECONDS)
        self._reserved, self._in_flight = self._reserved + cost, self._in_flight + 1
        try:
            turn = max(now := time.monotonic(), self._next)
            self._next = turn + self._seconds
            await asyncio.sleep(turn - now)
            yield
        finally:
            self._in_flight -= 1
            # No rounding error may stay reserved.
            self._reserved = self._reserved - cost if self._in_flight else 0.0


class OpenAIEngine:
    """Requests completions concurrently; each seed comes from the run's seed and the text, so neighbors do not matter.

    A prompt that the server refuses while it answers others gets a completion without texts, which the filters reject
    by name. If the run has to stop, completions of requests in flight are handed over before the error is raised.
    """

    name = "openai"

    def __init__(self, options: EngineOptions[OpenAIOptions], context: EngineContext, strict: bool = False) -> None:
        """The server is not contacted before the first request; `strict`: a refused prompt ends the run."""
        self.served, self.options, self.strict = options.model, options.options, strict
        self.at = context.options_at
        """Where its options are, for messages."""
        self.cap = f"{self.at}.openai.max_spend"
        self.limits = Limits(self.options, self.cap)
        self.priced, self.max_spend = self.options.priced, self.options.max_spend
        self.cost, self.charge = self.options.cost, self.limits.charge
        self._connection: tuple[LoopThread, Client] | None = None

    @property
    def facts(self) -> EngineFacts:
        return EngineFacts(local=False, each_draw="n" in self.options.extra_body)

    @property
    def model(self) -> str:
        """The model's name at the server, and a hash of the additional fields if there are any."""
        if not self.options.extra_body:
            return self.served
        canonical = json.dumps(self.options.extra_body, sort_keys=True, separators=(",", ":"))
        return f"{self.served}+{hashlib.blake2b(canonical.encode(), digest_size=6).hexdigest()}"

    @property
    def spent(self) -> float:
        return self.limits.spent

    def check(self) -> None:
        """Check that the server can be reached, takes the key and has the model; no completion is requested."""
        loop, client = self._connect()
        models = loop.submit(client.models()).result()
        # llama.cpp's server accepts any name, Ollama's a name without its tag.
        names = [one_line(model.id, 80) for model in models if model.owned_by != "llamacpp"]
        if names and not any(name == self.served or name.startswith(f"{self.served}:") for name in names):
            listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
            raise EngineError(
                f"{self.options.base_url} has no model {self.served!r}, but {listed}; set {self.at}.model to one of "
                f"them, or {self.at}.openai.base_url to the server that has it"
            )

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        completions = dict(filter(None, self.stream(prompts, sampling)))
        return [completions[number] for number in range(len(prompts))]

    def stream(
        self, prompts: Sequence[Prompt], sampling: SamplingOptions
    ) -> Generator[tuple[int, Completion] | None, None, None]:
        """Yield completions as they arrive, each with the number of its prompt; None after a second without one.

        While `concurrency` completions wait for the consumer, nothing more is requested.
        """
        loop, client = self._connect()
        completions: SimpleQueue[tuple[int, Completion] | None] = SimpleQueue()
        call = loop.submit(_Requests(self, client, prompts, sampling, completions).send())
        call.add_done_callback(lambda _: completions.put(None))
        try:
            while True:
                try:
                    if (item := completions.get(timeout=QUIET_SECONDS)) is None:
                        break
                except Empty:
                    item = None
                yield item
            call.result()
        finally:
            # An interrupt is raised here while the requests continue in the other thread.
            call.cancel()

    def close(self) -> None:
        if self._connection is not None:
            loop, client = self._connection
            loop.submit(client.close()).result()
            loop.close()
            self._connection = None

    def _connect(self) -> tuple[LoopThread, Client]:
        if self._connection is None:
            # The import takes a second, and `plan` needs no client.
            from paraclip_core.paraphrase.engines.openai_client import Client

            client = Client(self.options.base_url, self.options.api_key_env, self.options.retries, self.at)
            self._connection = LoopThread(), client
        return self._connection


@dataclass
class _Requests:
    """Requests about many prompts, as many in flight as the options allow."""

    engine: OpenAIEngine
    client: Client
    prompts: Sequence[Prompt]
    sampling: SamplingOptions
    completions: SimpleQueue[tuple[int, Completion] | None]
    failed: dict[int, EngineError] = field(default_factory=dict)
    """Prompts without a completion, and why."""
    refused: dict[int, EngineError] = field(default_factory=dict)
    """Prompts that got :data:`NO_ANSWER`, and why."""
    in_a_row: int = 0
    """Failures since the last answer with a word."""
    speaks: bool = False
    """Whether an answer held a word."""
    stop: EngineError | None = None
    """Why nothing more is requested."""

    async def send(self) -> None:
        """Request all completions; each is handed over as soon as it arrives."""
        numbers = iter(range(len(self.prompts)))
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self.engine.options.concurrency, len(self.prompts))):
                group.create_task(self._work(numbers))
        if self.stop:
            raise self.stop
        if self.speaks:
            self._refuse()
        if self.failed:
            raise self._failure(next(iter(self.failed.values())))
        if self.refused:
            counts, first = f"{len(self.refused)} of {len(self.prompts)}", next(iter(self.refused.values()))
            log.warning("%s prompts got no answer (%s), one: %s", counts, self._texts(self.refused), first)

    async def _work(self, numbers: Iterator[int]) -> None:
        room = self.engine.options.concurrency
        for number in numbers:
            while self.completions.qsize() >= room and not self.stop:
                await asyncio.sleep(PAUSE_SECONDS)
            if self.stop:
                return
            try:
                await self._request(number)
            except EngineError as error:
                self.stop = self.stop or error

    async def _request(self, number: int) -> None:
        """Request one prompt; raises what ends the run."""
        try:
            completion = await self._complete(self.prompts[number])
        except (RefusedError, AwayError) as error:
            self.failed[number] = error
            self._fail(self._failure(error), most=1 if self.engine.strict else FAILURES_IN_A_ROW)
            return
        self.completions.put((number, completion))
        self.speaks = self.speaks or any(text.strip() for text in completion.texts)
        if completion == NO_ANSWER:
            self.refused[number] = RefusedError(f"{self.engine.options.base_url} declines it")
        elif self.speaks:
            self.in_a_row = 0
            self._refuse()
        else:
            self._fail(EngineError(SILENT.format(url=self.engine.options.base_url, at=self.engine.at)))

    def _fail(self, error: EngineError, most: int = FAILURES_IN_A_ROW) -> None:
        self.in_a_row += 1
        if self.in_a_row >= most:
            raise error

    def _refuse(self) -> None:
        """The server answers, so prompts that it refused or failed on are at fault themselves."""
        for number in [n for n, error in self.failed.items() if isinstance(error, RefusedError | FailedError)]:
            self.refused[number] = self.failed.pop(number)
            self.completions.put((number, NO_ANSWER))

    async def _complete(self, prompt: Prompt) -> Completion:
        """Get all draws of a prompt, in one request if the server gives several."""
        engine, expected = self.engine, self.sampling.draws
        texts, read, written = (), 0, 0
        while len(texts) < expected:
            left = expected - len(texts)
            body = request_body(engine.served, prompt, self.sampling, left, len(texts), engine.options.extra_body)
            try:
                drawn = await self._send(body, prompt_size(prompt), completion_size(body))
            except EngineError:
                # Draws already paid for are kept as the prompt's only ones.
                if not texts:
                    raise
                break
            if drawn == NO_ANSWER:
                break
            texts, read, written = texts + drawn.texts, read + drawn.prompt_tokens, written + drawn.completion_tokens
        return Completion(texts, read, written)

    async def _send(self, body: dict[str, Any], prompt_tokens: int, completion_tokens: int) -> Completion:
        limits = self.engine.limits
        async with limits.request(prompt_tokens, completion_tokens):
            if self.stop:
                raise self.stop
            completion = await self.client.complete(body, prompt_tokens)
            limits.charge(completion.prompt_tokens, completion.completion_tokens)
            return completion

    def _failure(self, error: EngineError) -> EngineError:
        """A prompt's error, with all prompts that have no answer."""
        # A parent process that runs a stage in a child knows the classes of `paraclip_core.errors` alone.
        kind = AwayError if isinstance(error, AwayError) else RefusedError
        return kind(
            f"{error}; {len(self.failed)} of {len(self.prompts)} prompts have no answer: {self._texts(self.failed)}. "
            "Everything answered is kept; run again to continue"
        )

    def _texts(self, numbers: Iterable[int]) -> str:
        texts = [repr(one_line(self.prompts[number].text, 80)) for number in sorted(numbers)]
        return ", ".join(texts[:SHOWN]) + (f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else "")
