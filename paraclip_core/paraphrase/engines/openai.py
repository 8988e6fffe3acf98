"""Any OpenAI-compatible server as an engine: many requests at once, within limits, and no answer lost on the way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from queue import SimpleQueue

from anyio.from_thread import BlockingPortal, start_blocking_portal

from paraclip_core.config import ParaphraseOptions, SamplingOptions
from paraclip_core.engine_options import OpenAIOptions
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.engines.http_limits import Budget
from paraclip_core.paraphrase.engines.openai_client import OpenAIClient
from paraclip_core.paraphrase.engines.openai_run import OpenAIRun
from paraclip_core.paraphrase.protocol import Completion, EngineContext, EngineFacts, Prompt

__all__ = ["OpenAIEngine"]


class OpenAIEngine:
    """Asks concurrently; each request's seed comes from the run's seed and its text, so neighbours do not matter.

    A prompt that the server declines, because it is longer than the context or against its rules, or that it never
    answers while it answers others, gets a completion without texts, which the gates reject by name. When the run has
    to stop, requests under way are waited for, and what they answer is handed over before the error.
    """

    name = "openai"

    def __init__(self, model: str, options: OpenAIOptions) -> None:
        """`model` is its name at the server. Neither server nor key are looked at before the first request."""
        self._model, self._options = model, options
        self._budget = Budget(options)
        self._resources = ExitStack()
        self._running: tuple[BlockingPortal, OpenAIRun] | None = None

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
        found = self._model
        if self._options.revision:
            found += f"@{self._options.revision}"
        if self._options.extra_body:
            canonical = json.dumps(self._options.extra_body, sort_keys=True, separators=(",", ":"), default=str)
            found += f"+{hashlib.blake2b(canonical.encode(), digest_size=6).hexdigest()}"
        return found

    @property
    def priced(self) -> bool:
        """Whether it is known what tokens cost."""
        return self._options.priced

    @property
    def max_spend(self) -> float:
        """What this model's answers may cost, earlier runs' included; 0: no cap."""
        return self._options.max_spend

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Price of so many tokens, in the currency of the prices."""
        return self._options.cost(prompt_tokens, completion_tokens)

    @property
    def spent(self) -> float:
        """What answers have cost so far, in the currency of the prices; 0 where none are given."""
        return self._budget.spent

    def charge(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count tokens that were paid for earlier towards the spending cap."""
        self._budget.add(prompt_tokens, completion_tokens)

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        """Answers of each prompt, in order.

        Raises:
            EngineError: the server cannot be used or failed too often; its `finished` has what was answered.
            BudgetError: the spending cap is reached; likewise.
        """
        found: dict[int, Completion] = {}
        try:
            found.update(self.stream(prompts, sampling))
        except EngineError as error:
            error.finished = found
            raise
        return [found[number] for number in range(len(prompts))]

    def stream(
        self, prompts: Sequence[Prompt], sampling: SamplingOptions
    ) -> Generator[tuple[int, Completion], None, None]:
        """Completions as they come, each with the number of its prompt.

        While `concurrency` completions wait to be taken, nothing more is asked for.

        Raises:
            EngineError: the server cannot be used or failed too often; what was answered was handed over before.
            BudgetError: the spending cap is reached; likewise.
        """
        portal, run = self._running or self._start()
        answered: SimpleQueue[tuple[int, Completion] | None] = SimpleQueue()
        # Whoever takes them keeps them; what piles up while that takes long is lost when the process is killed.
        call = portal.start_task_soon(
            run.answer, prompts, sampling, answered.put, lambda: answered.qsize() < self._options.concurrency
        )
        call.add_done_callback(lambda _: answered.put(None))
        try:
            while (item := answered.get()) is not None:
                yield item
            call.result()
        finally:
            # An interrupt comes up here while the requests go on over there.
            call.cancel()

    def close(self) -> None:
        """Close the connections; the next call opens them again."""
        self._running = None
        self._resources.close()

    def _start(self) -> tuple[BlockingPortal, OpenAIRun]:
        client = OpenAIClient(self._model, self._options)
        # A loop in a thread of its own serves callers inside and outside of other loops.
        portal = self._resources.enter_context(start_blocking_portal())
        self._resources.callback(portal.call, client.close)
        # What waits for the budget belongs to the loop that it first waited in.
        self._budget = Budget(self._options, self._budget.spent)
        self._running = portal, OpenAIRun(self._model, self._options, client, self._budget)
        return self._running
