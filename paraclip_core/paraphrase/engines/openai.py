"""Any OpenAI-compatible server as an engine: many requests at once, within limits, and no answer lost on the way."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue

from paraclip_core.config import ParaphraseOptions, SamplingOptions
from paraclip_core.engine_options import OpenAIOptions
from paraclip_core.errors import AwayError, BudgetError, EngineError
from paraclip_core.lifetime import LoopThread
from paraclip_core.paraphrase.engines.base import Completion, EngineContext, EngineFacts, Prompt, in_order
from paraclip_core.paraphrase.engines.openai_retry import GaveUpError, OpenAIClient, RefusedError
from paraclip_core.paraphrase.engines.openai_wire import plain

log = logging.getLogger(__name__)

NONE_SPEAKS = 16
"""So many empty answers and no other: the model cannot answer as it is asked."""
PAUSE_SECONDS = 0.005
"""Between two looks whether there is room."""
QUIET_SECONDS = 1.0
"""Who takes the answers gets a turn at least so often, to keep those that came."""
OTHER_TEXT = "a dog on a beach"
"""What a server is asked about to tell whether it answers any text."""
SHOWN = 5
"""Captions that a message names."""


class Budget:
    """Counts what answers cost and stops before the cap is passed. Used from one event loop.

    A request sets aside the most that it can cost, so answers under way cannot pass the cap together either.
    """

    def __init__(self, options: OpenAIOptions, spent: float = 0.0) -> None:
        self._options = options
        self.spent = spent
        """Cost of all answers so far, in the currency of the prices."""
        self._set_aside = 0.0
        self._changed = asyncio.Event()

    def add(self, prompt_tokens: float, completion_tokens: float) -> None:
        """Count an answer."""
        self.spent += self._options.cost(prompt_tokens, completion_tokens)

    async def set_aside(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Set aside what a request may cost, waiting for answers under way where only they stand against it."""
        cost = self._options.cost(prompt_tokens, completion_tokens)
        cap = self._options.max_spend
        while cap and self.spent + self._set_aside + cost > cap:
            if self.spent + cost > cap:
                raise BudgetError(
                    f"the spending cap is reached: {self.spent:.6g} of paraphrase.openai.max_spend={cap:g} is spent "
                    f"(earlier runs included), and one request more may cost {cost:.3g}. Everything answered is kept; "
                    "raise max_spend and run again to go on from there"
                )
            self._changed.clear()
            await self._changed.wait()
        self._set_aside += cost
        return cost

    def release(self, cost: float) -> None:
        """Give back what `set_aside` returned, once the request is over."""
        self._set_aside = max(0.0, self._set_aside - cost)
        self._changed.set()


class OpenAIEngine:
    """Asks concurrently; each request's seed comes from the run's seed and its text, so neighbors do not matter.

    A prompt that the server declines, because it is longer than the context or against its rules, or that it never
    answers while it answers others, gets a completion without texts, which the gates reject by name. When the run has
    to stop, requests under way are waited for, and what they answer is handed over before the error.
    """

    name = "openai"

    def __init__(self, model: str, options: OpenAIOptions, urls: Sequence[str] = (), strict: bool = False) -> None:
        """Neither server nor key are looked at before the first request.

        `urls` are servers that share the work, in place of the options' one; `strict`: a declined prompt ends the run.
        """
        self._model, self._options, self._urls, self._strict = model, options, urls, strict
        self._budget = Budget(options)
        self._resources = ExitStack()
        self._connected: tuple[LoopThread, OpenAIClient] | None = None

    @classmethod
    def from_options(cls, options: ParaphraseOptions, context: EngineContext) -> OpenAIEngine:
        """The engine of the paraphrase options."""
        return cls(options.model, options.openai)

    @property
    def facts(self) -> EngineFacts:
        """A server somewhere."""
        options = self._options
        limited = options.max_spend or options.requests_per_minute or options.tokens_per_minute
        return EngineFacts(
            paid=True,
            local=False,
            max_in_flight=options.concurrency,
            one_process="the spending cap and the limits per minute hold for one process" if limited else None,
        )

    @property
    def model(self) -> str:
        """The model's name at the server, its revision, and a hash of the additional fields where there are any."""
        name = self._model
        if self._options.revision:
            name += f"@{self._options.revision}"
        if self._options.extra_body:
            canonical = json.dumps(self._options.extra_body, sort_keys=True, separators=(",", ":"), default=str)
            name += f"+{hashlib.blake2b(canonical.encode(), digest_size=6).hexdigest()}"
        return name

    @property
    def priced(self) -> bool:
        """Whether it is known what tokens cost."""
        return self._options.priced

    @property
    def max_spend(self) -> float:
        """What this model's answers may cost, earlier runs' included; 0: no cap."""
        return self._options.max_spend

    @property
    def spent(self) -> float:
        """What answers have cost so far, in the currency of the prices; 0 where none are given."""
        return self._budget.spent

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Price of so many tokens, in the currency of the prices."""
        return self._options.cost(prompt_tokens, completion_tokens)

    def charge(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count tokens that were paid for earlier towards the spending cap."""
        self._budget.add(prompt_tokens, completion_tokens)

    def check(self) -> None:
        """Look whether the server can be reached, takes the key and has the model; nothing is asked for."""
        loop, client = self._connect()
        loop.submit(client.check()).result()

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        """Answers of each prompt, in order."""
        return in_order(self.stream(prompts, sampling))

    def stream(
        self, prompts: Sequence[Prompt], sampling: SamplingOptions
    ) -> Generator[tuple[int, Completion] | None, None, None]:
        """Completions as they come, each with the number of its prompt; None after a second without one.

        While `concurrency` completions wait to be taken, nothing more is asked for.
        """
        loop, client = self._connect()
        answered: SimpleQueue[tuple[int, Completion] | None] = SimpleQueue()
        run = _Run(self._options, self._strict, client, self._budget, prompts, sampling, answered)
        call = loop.submit(run.answer())
        call.add_done_callback(lambda _: answered.put(None))
        try:
            while True:
                try:
                    if (item := answered.get(timeout=QUIET_SECONDS)) is None:
                        break
                except Empty:
                    item = None
                yield item
            call.result()
        finally:
            # An interrupt comes up here while the requests go on over there.
            call.cancel()

    def close(self) -> None:
        """Close the connections; the next call opens them again."""
        self._connected = None
        self._resources.close()

    def _connect(self) -> tuple[LoopThread, OpenAIClient]:
        if self._connected is None:
            client = OpenAIClient(self._model, self._options, self._urls)
            loop = LoopThread()
            self._resources.callback(loop.close)
            self._resources.callback(lambda: loop.submit(client.close()).result())
            # What waits for the budget belongs to the loop that it first waited in.
            self._budget = Budget(self._options, self._budget.spent)
            self._connected = loop, client
        return self._connected


class _HaltedError(Exception):
    """Another request ended the run before this one was answered."""


@dataclass
class _Run:
    """Many prompts at one server at once, and what becomes of each when some fail.

    A failure may be the prompt's or the server's, which is in doubt until the server answers anything else. At the end
    prompts in doubt, and those that failed with all their retries, are asked for once more.
    """

    options: OpenAIOptions
    strict: bool
    client: OpenAIClient
    budget: Budget
    prompts: Sequence[Prompt]
    sampling: SamplingOptions
    answered: SimpleQueue[tuple[int, Completion] | None]
    declined: dict[int, str] = field(default_factory=dict)
    """In the server's words."""
    failed: dict[int, str] = field(default_factory=dict)
    """All attempts failed, the last one like this."""
    doubts: dict[int, RefusedError | GaveUpError] = field(default_factory=dict)
    """Failures since the last answer."""
    begun: dict[int, Completion] = field(default_factory=dict)
    ends: list[EngineError] = field(default_factory=list)
    """Why nothing more is asked for."""
    silent: int | None = 0
    """Completions without a word; None once there was one with some."""
    again: bool = False
    """Whether this is the second round, of what failed in the first."""
    halt: asyncio.Event = field(default_factory=asyncio.Event)
    probing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def answer(self) -> None:
        """Ask for all of the prompts; each completion is handed over as soon as it is there."""
        await self._work(range(len(self.prompts)))
        if not self.ends:
            self.again = True
            await self._work(sorted({*self.failed, *self.doubts}))
        declined = {number: why for number, why in sorted(self.declined.items()) if number not in self.doubts}
        for number in declined:
            # Draws that were answered before one was not are as good as any.
            self.answered.put((number, self.begun.pop(number, Completion(self.prompts[number].begun, 0, 0))))
        if declined:
            counts, why = f"{len(declined)} of {len(self.prompts)}", next(iter(declined.values()))
            log.warning("%s prompts were declined (%s), one: %s", counts, self._named(declined), why)
        if self.ends:
            self.ends[0].begun = self.begun
            raise self.ends[0]

    async def _work(self, numbers: Sequence[int]) -> None:
        """Ask for the prompts with these numbers, as many at once as the options say."""
        waiting = iter(numbers)

        async def work() -> None:
            for number in waiting:
                try:
                    await self._one(number)
                except EngineError as error:
                    self.ends.append(error)
                except _HaltedError:
                    return
                if self.ends:
                    self.halt.set()
                    return

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self.options.concurrency, len(numbers))):
                group.create_task(work())

    async def _one(self, number: int) -> None:
        prompt = self.prompts[number]
        try:
            while self.answered.qsize() >= self.options.concurrency:
                await self._rest(PAUSE_SECONDS)
            # Until it is known whether the server answers at all, it is asked for nothing more.
            async with self.probing:
                pass
            completion = await self._complete(prompt, number)
        except RefusedError as error:
            error.add_note(f"It was asked about {plain(prompt.text, 80)!r}.")
            self.doubts[number] = error
            if self.strict or not error.about_one or not await self._answers_others(prompt):
                raise
            self.failed.pop(number, None)
            self.declined[number] = error.reply.text if error.reply.declines else str(error)
        except GaveUpError as error:
            self.doubts[number], self.failed[number] = error, str(error)
            in_a_row = len(self.doubts)
            if not await self._answers_others(prompt):
                raise (self._left_over() if self.again else self._broken(in_a_row, error)) from error
            if self.again:
                self.declined[number] = self.failed.pop(number)
        else:
            self.failed.pop(number, None)
            self.declined.pop(number, None)
            self.answered.put((number, completion))
            self._check_words(completion)

    async def _answers_others(self, prompt: Prompt) -> bool:
        """Whether what came of a prompt is about its text: the server answers the same request about another one.

        It is asked only where answers of late do not say, and always at the end.
        """
        role, content = prompt.messages[-1]
        before, text, behind = content.rpartition(prompt.text)
        other = (*prompt.messages[:-1], (role, f"{before}{OTHER_TEXT}{behind}" if text else OTHER_TEXT))
        async with self.probing:
            if self.halt.is_set():
                raise _HaltedError
            few = len(self.doubts) < self.options.max_failures
            refused = any(isinstance(error, RefusedError) for error in self.doubts.values())
            # What failed with all its retries before the first answer is seen to when all else was asked for.
            if few and not self.again and (self.client.answered or not refused):
                return True
            try:
                await self._complete(replace(prompt, messages=other, text=OTHER_TEXT, begun=()), None)
            except (RefusedError, GaveUpError) as error:
                log.warning("%s does not answer %r either: %s", self.options.base_url, OTHER_TEXT, error)
                return False
            return True

    async def _complete(self, prompt: Prompt, number: int | None) -> Completion:
        """All draws of a prompt; where an exception ends it, `begun` gets those that were there."""
        # Greedy decoding has one answer.
        expected = 1 if self.sampling.temperature == 0 else self.sampling.n
        texts, asked, drawn = [*prompt.begun], 0, 0
        aside = await self.budget.set_aside(*self.client.most(prompt, self.sampling, expected - len(texts)))
        try:
            if self.halt.is_set():
                raise _HaltedError
            while len(texts) < expected:
                answer = await self.client.ask(prompt, self.sampling, expected - len(texts), len(texts), self._rest)
                self.doubts.clear()
                self.budget.add(answer.prompt_tokens, answer.completion_tokens)
                texts += answer.texts
                asked, drawn = asked + answer.prompt_tokens, drawn + answer.completion_tokens
        except Exception:
            if number is not None and len(texts) > len(prompt.begun):
                self.begun[number] = Completion(tuple(texts), asked, drawn)
            raise
        finally:
            self.budget.release(aside)
        return Completion(tuple(texts), asked, drawn)

    def _check_words(self, completion: Completion) -> None:
        spoken = self.silent is None or any(text.strip() for text in completion.texts)
        self.silent = None if spoken else (self.silent or 0) + 1
        if self.silent == NONE_SPEAKS:
            raise EngineError(
                f"{self.options.base_url} gave {NONE_SPEAKS} answers without a word. A model that thinks first needs "
                "more paraphrase.sampling.max_tokens, or its thinking turned off in paraphrase.openai.extra_body"
            )

    def _broken(self, in_a_row: int, last: Exception) -> AwayError:
        return AwayError(
            f"{in_a_row} requests in a row failed with all their retries "
            f"(paraphrase.openai.max_failures={self.options.max_failures}), last: {last}; everything answered is kept. "
            f"See to {self.options.base_url} and run again to go on from there"
        )

    def _left_over(self) -> AwayError:
        return AwayError(
            f"{len(self.failed)} of {len(self.prompts)} requests failed with all their retries, for "
            f"{self._named(self.failed)}: {self.failed[min(self.failed)]}; run again to ask for these"
        )

    def _named(self, numbers: Iterable[int]) -> str:
        texts = [repr(plain(self.prompts[number].text, 80)) for number in sorted(numbers)]
        return ", ".join(texts[:SHOWN]) + (f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else "")

    async def _rest(self, seconds: float) -> None:
        """Wait, unless the run is halted."""
        try:
            await asyncio.wait_for(self.halt.wait(), seconds)
        except TimeoutError:
            return
        raise _HaltedError
