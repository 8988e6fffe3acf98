"""Any OpenAI-compatible server as an engine: the `openai` package's client, with rate limits and a spending cap.

The client retries, waits as `Retry-After` says and keeps the connections. This module adds the request's body and seed,
many requests at once, a cap that concurrent answers cannot exceed together, and the handling of prompts that get no
answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from paraclip_core.errors import AwayError, BudgetError, EngineError
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
from paraclip_core.text_safety import one_line

if TYPE_CHECKING:
    # Imported where it is used: the import takes a second, and `plan` needs no client.
    import openai

log = logging.getLogger(__name__)

QUOTED = 300
"""Maximum characters of a server's answer that a message quotes."""
MILLION = 1_000_000
OURS = frozenset(("messages", "model", "n", "prompt", "seed", "stream"))
"""Fields of a request body that are filled here."""
BYTES_PER_TOKEN = 3
"""A conservative estimate: English has four or more."""
TOKENS_PER_TURN = 8
MOST_TOKENS = 10_000_000
"""A larger count is a mistake of the server's."""
ABOUT_ONE = frozenset((400, 403, 413, 422, 451))
"""Statuses that may concern one prompt: servers and gateways report violations of their rules in many ways."""
TOO_MANY = 429
PASSING = frozenset((408, 409, 425))
"""Other statuses below 500 of transient failures."""
FAILURES_IN_A_ROW = 8
"""After this many failures without an answer in between, it is in doubt whether the prompts or the server is at
fault."""
OTHER_TEXT = "a dog on a beach"
"""The text that a server in doubt is asked about."""
NONE_SPEAKS = 16
"""After this many empty answers and no others, the model cannot answer as it is asked."""
TIMEOUT_SECONDS = 600.0
"""Longest time without a byte of an answer, which a server that queues requests may need."""
PAUSE_SECONDS = 0.005
"""Interval between checks for room."""
QUIET_SECONDS = 1.0
"""The consumer gets a turn at least this often, to store completions that arrived."""
SHOWN = 5
"""Maximum captions that a message names."""
SECRETS = Path("/run/secrets")
"""Where Docker and Compose put a container's secrets, one file each."""


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


class RefusedError(EngineError):
    """The server refuses a prompt."""


class FailedError(AwayError):
    """A request failed after all its retries."""


class RateLimitError(FailedError):
    """The server takes no more requests for now, which says nothing about the prompt."""


class Budget:
    """Tracks the cost of answers and stops before the cap is exceeded. Used from one event loop.

    A request reserves its maximum cost, so concurrent requests cannot exceed the cap together either.
    """

    def __init__(self, options: OpenAIOptions, at: str, spent: float = 0.0) -> None:
        self._options, self._at = options, at
        self.spent = spent
        """Cost of all answers so far, in the currency of the prices."""
        self._reserved = 0.0
        self._changed = asyncio.Event()

    def add(self, prompt_tokens: float, completion_tokens: float) -> None:
        self.spent += self._options.cost(prompt_tokens, completion_tokens)

    async def reserve(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Reserve the maximum cost of a request; wait for requests in flight if only they are in the way."""
        cost, cap = self._options.cost(prompt_tokens, completion_tokens), self._options.max_spend
        while cap and self.spent + self._reserved + cost > cap:
            if self.spent + cost > cap:
                raise BudgetError(
                    f"the spending cap is reached: {self.spent:.6g} of {self._at}.openai.max_spend={cap:g} is spent "
                    f"(earlier runs included), and another request may cost {cost:.3g}. Everything answered is kept; "
                    "raise max_spend and run again to continue"
                )
            self._changed.clear()
            await self._changed.wait()
        self._reserved += cost
        return cost

    def release(self, cost: float) -> None:
        """Give back what `reserve` returned, once the request is over."""
        self._reserved = max(0.0, self._reserved - cost)
        self._changed.set()


class Pace:
    """Spreads requests over time, so that no minute has more of them than allowed."""

    def __init__(self, per_minute: float) -> None:
        self._seconds, self._next = 60 / per_minute if per_minute else 0.0, 0.0

    async def turn(self) -> None:
        """Wait until a request may be sent. There are no bursts, which servers would refuse."""
        at = max(now := time.monotonic(), self._next)
        self._next = at + self._seconds
        await asyncio.sleep(at - now)


class OpenAIEngine:
    """Requests completions concurrently; each seed comes from the run's seed and the text, so neighbors do not matter.

    If the server refuses or never answers a prompt but answers others, that prompt gets a completion without texts,
    which the filters reject by name. If the run has to stop, requests in flight are awaited, and their completions are
    handed over before the error is raised.
    """

    name = "openai"

    def __init__(self, options: EngineOptions[OpenAIOptions], context: EngineContext, strict: bool = False) -> None:
        """The server is not contacted before the first request; `strict`: a refused prompt ends the run."""
        self.served, self._options, self.strict = options.model, options.options, strict
        self.at = context.options_at
        """Where its options are, for messages."""
        self.budget, self.pace = Budget(self._options, self.at), Pace(self._options.requests_per_minute)
        self._connection: tuple[LoopThread, openai.AsyncOpenAI] | None = None
        self._key = ""

    @property
    def facts(self) -> EngineFacts:
        return EngineFacts(local=False, each_draw="n" in self._options.extra_body)

    @property
    def model(self) -> str:
        """The model's name at the server, and a hash of the additional fields if there are any."""
        if not self._options.extra_body:
            return self.served
        canonical = json.dumps(self._options.extra_body, sort_keys=True, separators=(",", ":"))
        return f"{self.served}+{hashlib.blake2b(canonical.encode(), digest_size=6).hexdigest()}"

    @property
    def priced(self) -> bool:
        return self._options.priced

    @property
    def max_spend(self) -> float:
        return self._options.max_spend

    @property
    def cap(self) -> str:
        return f"{self.at}.openai.max_spend"

    @property
    def spent(self) -> float:
        return self.budget.spent

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        return self._options.cost(prompt_tokens, completion_tokens)

    def charge(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.budget.add(prompt_tokens, completion_tokens)

    def check(self) -> None:
        """Check that the server can be reached, takes the key and has the model; no completion is requested."""
        loop, client = self._connect()
        models = loop.submit(self.models(client)).result()
        # llama.cpp's server accepts any name, Ollama's a name without its tag.
        names = [one_line(model.id, 80) for model in models if model.owned_by != "llamacpp"]
        if names and not any(name == self.served or name.startswith(f"{self.served}:") for name in names):
            listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
            raise EngineError(
                f"{self._options.base_url} has no model {self.served!r}, but {listed}; set {self.at}.model to one of "
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
        call = loop.submit(_Run(self, self._options, client, prompts, sampling, completions).run())
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

    async def models(self, client: openai.AsyncOpenAI) -> list[Any]:
        """The models that the server lists; empty if it has no list."""
        import openai

        try:
            return [model for model in (await client.models.list()).data or () if hasattr(model, "id")]
        except openai.AuthenticationError as error:
            raise self._explained(error) from None
        except openai.APIConnectionError as error:
            raise AwayError(
                f"{self._options.base_url} cannot be reached: {one_line(error.__cause__ or error, QUOTED)}; start the "
                f"server, or set {self.at}.openai.base_url to its address"
            ) from None
        except (openai.APIError, ValueError, AttributeError):
            return []

    async def post(self, client: openai.AsyncOpenAI, body: dict[str, Any], prompt_tokens: int) -> Completion:
        """Return the answers to one request; RefusedError if the prompt is at fault, FailedError if it may pass."""
        import openai

        try:
            text = await client.post("/chat/completions", cast_to=str, body=body)
            return read_completion(json.loads(text), body.get("n", 1), prompt_tokens)
        except openai.APIError as error:
            # A chained error would log the server's text, which may repeat the key.
            raise self._explained(error) from None
        except (ValueError, RecursionError) as error:
            # Gateways pass a failure on with status 200.
            raise FailedError(
                f"{self._options.base_url} sent an invalid response: {one_line(self._without_key(str(error)), QUOTED)}"
            ) from None

    def _explained(self, error: openai.APIError) -> EngineError:
        import openai

        url, variable = self._options.base_url, self._options.api_key_env
        if not isinstance(error, openai.APIStatusError):
            return FailedError(f"{url} does not answer: {one_line(error.__cause__ or error, QUOTED)}")
        status, text = error.status_code, one_line(self._without_key(error.response.text), QUOTED) or "(empty response)"
        if error.code == "insufficient_quota":
            return EngineError(f"{url} no longer answers: {text}; check the account and run again")
        if status == TOO_MANY:
            hint = f"set {self.at}.openai.requests_per_minute to what it allows"
            return RateLimitError(f"{url} takes no more requests for now (status {status}): {text}; {hint}")
        if status in PASSING or status >= 500:
            return FailedError(f"{url} failed (status {status}): {text}")
        if status in ABOUT_ONE:
            return RefusedError(f"{url} refuses the request (status {status}): {text}")
        hint = f"does {self.at}.openai.base_url end as the server expects, usually in /v1?"
        if status == 401:
            hint = f"put a valid key into the environment variable {variable} or the file {SECRETS / variable}"
            hint += "" if self._key else "; neither holds one"
        return EngineError(f"{url} refuses the request (status {status}): {text}; {hint}")

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    def _connect(self) -> tuple[LoopThread, openai.AsyncOpenAI]:
        if self._connection is None:
            import openai

            options = self._options
            # Read once: a file may change, and the key that was sent is the one to redact.
            self._key = _key(options.api_key_env)
            # Their log line for every request would flood a stage's log.
            for name in ("httpx2", "openai"):
                logging.getLogger(name).setLevel(logging.WARNING)
            client = openai.AsyncOpenAI(
                base_url=options.base_url,
                api_key=self._key or "none",
                timeout=TIMEOUT_SECONDS,
                max_retries=options.retries,
                # With hundreds of concurrent requests, the default transport takes four times the CPU time.
                http_client=openai.DefaultAioHttpClient(
                    # A proxy for outside traffic does not apply to a server on this machine.
                    trust_env=urlsplit(options.base_url).hostname not in ("localhost", "127.0.0.1", "::1"),
                ),
            )
            # Waiters on the budget belong to the event loop in which they first waited.
            self.budget = Budget(options, self.at, self.budget.spent)
            self._connection = LoopThread(), client
        return self._connection


@dataclass
class _Run:
    """Sends many prompts to one server at once, and handles those that fail.

    A failure may be the prompt's or the server's. It is the prompt's if the server answers another prompt after it.
    """

    engine: OpenAIEngine
    options: OpenAIOptions
    client: openai.AsyncOpenAI
    prompts: Sequence[Prompt]
    sampling: SamplingOptions
    completions: SimpleQueue[tuple[int, Completion] | None]
    failed: dict[int, EngineError] = field(default_factory=dict)
    """Prompts without an answer, and why."""
    in_a_row: int = 0
    """Failures since the last answer."""
    silent: int | None = 0
    """Completions without a word; None once one had words."""
    stop: EngineError | None = None
    """Why nothing more is requested."""
    doubting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self) -> None:
        """Request all completions; each is handed over as soon as it arrives."""
        await self._work(range(len(self.prompts)))
        if not self.stop:
            # A server that was overloaded may have recovered.
            await self._work([number for number, error in self.failed.items() if isinstance(error, FailedError)])
        if self.in_a_row and not self.stop:
            await self._doubt(next(reversed(self.failed)))
        if self.stop:
            raise self.stop
        if limited := [number for number, error in self.failed.items() if isinstance(error, RateLimitError)]:
            raise self._named(limited[0])
        for number in sorted(self.failed):
            self.completions.put((number, Completion((), 0, 0)))
        if self.failed:
            counts, first = f"{len(self.failed)} of {len(self.prompts)}", next(iter(self.failed.values()))
            log.warning("%s prompts got no answer (%s), one: %s", counts, self._texts(self.failed), first)

    async def _work(self, numbers: Iterable[int]) -> None:
        """Request the prompts with these numbers, as many concurrently as the options allow."""
        waiting = iter(numbers)

        async def work() -> None:
            for number in waiting:
                while self.completions.qsize() >= self.options.concurrency and not self.stop:
                    await asyncio.sleep(PAUSE_SECONDS)
                if self.stop:
                    return
                try:
                    await self._one(number)
                except EngineError as error:
                    self.stop = self.stop or error

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self.options.concurrency, len(self.prompts))):
                group.create_task(work())

    async def _one(self, number: int) -> None:
        """Request one prompt; raises what ends the run."""
        try:
            completion = await self._complete(self.prompts[number])
        except (RefusedError, FailedError) as error:
            self.failed[number] = error
            self.in_a_row += 1
            if self.engine.strict:
                raise self._named(number) from error
            if self.in_a_row >= FAILURES_IN_A_ROW:
                await self._doubt(number)
            return
        self.failed.pop(number, None)
        self.in_a_row = 0
        self.completions.put((number, completion))
        spoke = self.silent is None or any(text.strip() for text in completion.texts)
        self.silent = None if spoke else (self.silent or 0) + 1
        if self.silent == NONE_SPEAKS:
            at = self.engine.at
            raise EngineError(
                f"{self.options.base_url} gave {NONE_SPEAKS} empty answers. A model that thinks first needs more "
                f"{at}.sampling.max_tokens, or its thinking turned off in {at}.openai.extra_body"
            )

    async def _doubt(self, number: int) -> None:
        """End the run, unless the server answers the same request about another text."""
        prompt = self.prompts[number]
        role, content = prompt.messages[-1]
        before, text, behind = content.rpartition(prompt.text)
        other = (*prompt.messages[:-1], (role, f"{before}{OTHER_TEXT}{behind}" if text else OTHER_TEXT))
        prompt = replace(prompt, messages=other, text=OTHER_TEXT)
        body = request_body(self.engine.served, prompt, self.sampling, 1, 0, self.options.extra_body)
        async with self.doubting:
            if self.in_a_row:
                try:
                    await self._request(body, prompt_size(prompt), completion_size(body))
                except (RefusedError, FailedError):
                    raise self._named(number) from None
                self.in_a_row = 0

    async def _complete(self, prompt: Prompt) -> Completion:
        """Get all draws of a prompt, in one request if the server gives several."""
        expected = self.sampling.draws
        texts, read, written = (), 0, 0
        while len(texts) < expected:
            left = expected - len(texts)
            body = request_body(self.engine.served, prompt, self.sampling, left, len(texts), self.options.extra_body)
            tokens = prompt_size(prompt), completion_size(body)
            try:
                some = await self._request(body, *tokens)
            except EngineError:
                # Draws already paid for are kept as the prompt's only ones.
                if not texts:
                    raise
                break
            texts, read, written = texts + some.texts, read + some.prompt_tokens, written + some.completion_tokens
        return Completion(texts, read, written)

    async def _request(self, body: dict[str, Any], prompt_tokens: int, completion_tokens: int) -> Completion:
        budget = self.engine.budget
        reserved = await budget.reserve(prompt_tokens, completion_tokens)
        try:
            await self.engine.pace.turn()
            if self.stop:
                raise self.stop
            completion = await self.engine.post(self.client, body, prompt_tokens)
            budget.add(completion.prompt_tokens, completion.completion_tokens)
            return completion
        finally:
            budget.release(reserved)

    def _named(self, number: int) -> EngineError:
        error, counts = self.failed[number], f"{len(self.failed)} of {len(self.prompts)}"
        # A parent process that runs a stage in a child knows the class of errors that leave the engine.
        kind = AwayError if isinstance(error, FailedError) else RefusedError if self.engine.strict else EngineError
        return kind(
            f"{error}; {counts} prompts have no answer: {self._texts(self.failed)}. Everything answered is kept; run "
            "again to continue"
        )

    def _texts(self, numbers: Iterable[int]) -> str:
        texts = [repr(one_line(self.prompts[number].text, 80)) for number in sorted(numbers)]
        return ", ".join(texts[:SHOWN]) + (f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else "")


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
    turns = [("user", content) if role == "text" else (role, content) for role, content in prompt.messages]
    body: dict[str, Any] = {"model": model, "max_tokens": sampling.max_tokens, "temperature": sampling.temperature}
    body |= {"seed": draw_seed(prompt, draw), "messages": [{"role": role, "content": text} for role, text in turns]}
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
