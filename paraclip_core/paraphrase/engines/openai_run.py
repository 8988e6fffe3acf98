"""Many prompts at one server at once, and what becomes of each when some fail."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from paraclip_core.config import SamplingOptions
from paraclip_core.engine_options import OpenAIOptions
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.engines.http_limits import Budget
from paraclip_core.paraphrase.engines.openai_client import DeclinedError, GaveUpError, OpenAIClient, RefusedError
from paraclip_core.paraphrase.engines.openai_wire import Answer, most_said, plain, prompt_size, request_body
from paraclip_core.paraphrase.protocol import Completion, Prompt

__all__ = ["OpenAIRun"]

log = logging.getLogger(__name__)

HandOver = Callable[[tuple[int, Completion]], None]
"""Takes a prompt's number and its completion."""
Room = Callable[[], bool]
"""Whether another request may be made."""

CHAT, PLAIN = "/chat/completions", "/completions"
NONE_TAKEN = 8
"""So many prompts declined and none taken: the server's context is too small for any, or its rules are against all."""
NONE_SPEAKS = 16
"""So many empty answers and no other: the model cannot answer as it is asked."""
PAUSE_SECONDS = 0.005
"""Between two looks whether there is room."""
ABOUT_ONE = frozenset((400, 403, 422, 451))
"""Statuses that may be about one prompt: servers and what stands before them have many words for their rules."""
OTHER_TEXT = "a dog on a beach"
"""What a server is asked about to tell whether it answers any text."""
SHOWN = 5
"""Captions that a message names."""


class _HaltedError(Exception):
    """Another request ended the run before this one was answered."""


@dataclass
class _Call:
    """One call of `answer`: what is asked, and what became of the prompts by their numbers."""

    prompts: Sequence[Prompt]
    sampling: SamplingOptions
    hand_over: HandOver
    room: Room
    declined: dict[int, str] = field(default_factory=dict)
    """In the server's words."""
    failed: dict[int, str] = field(default_factory=dict)
    """All attempts failed, the last one like this."""
    begun: dict[int, Completion] = field(default_factory=dict)
    ends: list[EngineError] = field(default_factory=list)
    """Why nothing more is asked for."""

    def named(self, numbers: Mapping[int, str]) -> str:
        """The first prompts with these numbers, for a message."""
        texts = [repr(plain(self.prompts[number].text, 80)) for number in sorted(numbers)]
        return ", ".join(texts[:SHOWN]) + (f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else "")


class OpenAIRun:
    """What is learnt about a server while it is asked. Used from one event loop, one call of `answer` at a time."""

    def __init__(self, model: str, options: OpenAIOptions, client: OpenAIClient, budget: Budget) -> None:
        """`model` is its name at the server."""
        self._model, self._options, self._client, self._budget = model, options, client, budget
        # Whether a request gets one answer only; None: not known yet.
        self._one_by_one: dict[str, bool | None] = dict.fromkeys((CHAT, PLAIN), None if options.ask_for_n else True)
        self._chat_only = False
        self._heard = self._taken = self._spoken = False
        self._silent = 0
        # In a row, without an answer in between.
        self._given_up = 0
        self._refused: dict[int, RefusedError] = {}
        self._answered: set[str] = set()
        self._asks_other = asyncio.Lock()
        self._seen_models: set[str] = {"", model}
        self._halt = asyncio.Event()

    async def answer(
        self, prompts: Sequence[Prompt], sampling: SamplingOptions, hand_over: HandOver, room: Room = lambda: True
    ) -> None:
        """Ask for all of the prompts; each completion is handed over as soon as it is there.

        While there is no `room`, no further request is made. A prompt that is refused or fails again and again while
        the server answers others gets a completion with the draws that it has, usually none.

        Raises:
            EngineError: not every prompt has one.
        """
        self._halt.clear()
        self._refused.clear()
        call = _Call(prompts, sampling, hand_over, room)
        await self._work(call, range(len(prompts)), again=False)
        if call.failed and not call.ends:
            await self._work(call, sorted(call.failed), again=True)
        await self._settle(call)
        # What no prompt gets says nothing about these ones.
        if self._taken or not call.ends:
            for number in call.declined:
                # Draws that were answered before one was not are as good as any.
                hand_over((number, call.begun.pop(number, Completion(prompts[number].begun, 0, 0))))
        if call.declined:
            log.warning(
                "%s of %s prompts were declined (%s), one: %s",
                len(call.declined),
                len(prompts),
                call.named(call.declined),
                min(call.declined.items())[1],
            )
        if call.ends:
            call.ends[0].begun = call.begun
            raise call.ends[0]

    async def _settle(self, call: _Call) -> None:
        """The last prompts that were refused are declined only if the server still answers others."""
        refused = dict(self._refused)
        if refused and not call.ends:
            number, error = min(refused.items())
            try:
                if await self._answers_others(call.prompts[number], call.sampling, certainly=True):
                    return
                call.ends.append(error)
            except EngineError as other:
                call.ends.append(other)
        for number in refused:
            call.declined.pop(number, None)

    async def _work(self, call: _Call, numbers: Sequence[int], again: bool) -> None:
        """Ask for the prompts with these numbers, as many at once as the options say."""
        waiting = iter(numbers)

        async def work() -> None:
            for number in waiting:
                try:
                    await self._one(call, number, again)
                except EngineError as error:
                    call.ends.append(error)
                except _HaltedError:
                    return
                if call.ends:
                    self._halt.set()
                    return

        try:
            await asyncio.gather(*(work() for _ in range(min(self._options.concurrency, len(numbers)))))
        except BaseException:
            self._halt.set()
            raise

    async def _one(self, call: _Call, number: int, again: bool) -> None:
        """Ask for one prompt; `again` where it has failed with all its retries before.

        Raises:
            EngineError: the server is of no use any more.
            _HaltedError: something else ended the run.
        """
        prompt = call.prompts[number]
        try:
            while not call.room():
                await self._rest(PAUSE_SECONDS)
            # Until it is known whether the server answers at all, it is asked for nothing more.
            await self._asks_other.acquire()
            self._asks_other.release()
            completion = await self._complete(prompt, call.sampling, partial(call.begun.__setitem__, number))
        except DeclinedError as error:
            why = str(error)
        except RefusedError as error:
            error.add_note(f"It was asked about {plain(prompt.text, 80)!r}.")
            self._refused[number] = error
            if error.status not in ABOUT_ONE or not await self._answers_others(prompt, call.sampling):
                raise
            why = str(error)
        except GaveUpError as error:
            why = call.failed[number] = str(error)
            self._given_up += 1
            in_a_row = self._given_up
            if not await self._answers_others(prompt, call.sampling, certainly=again):
                call.ends.append(self._left_over(call) if again else self._broken(in_a_row, why))
                return
            if not again:
                return
        else:
            call.failed.pop(number, None)
            call.hand_over((number, completion))
            call.ends.extend(self._none_speaks(completion))
            return
        call.failed.pop(number, None)
        call.declined[number] = why
        call.ends.extend(self._none_taken(call.declined))

    async def _answers_others(self, prompt: Prompt, sampling: SamplingOptions, certainly: bool = False) -> bool:
        """Whether what came of a prompt is about its text: the server answers the same request about another one.

        It is asked only where answers of late do not say, or `certainly`.
        """
        role, content = prompt.messages[-1]
        before, found, behind = content.rpartition(prompt.text)
        turns = (*prompt.messages[:-1], (role, f"{before}{OTHER_TEXT}{behind}" if found else OTHER_TEXT))
        other = replace(prompt, messages=turns, text=OTHER_TEXT, begun=())
        async with self._asks_other:
            if self._halt.is_set():
                raise _HaltedError
            few = max(self._given_up, len(self._refused)) < self._options.max_failures
            # A failure before the first answer is seen to when everything else was asked for.
            if not certainly and few and (self._heard or not self._refused):
                return True
            try:
                await self._complete(other, sampling, lambda _: None, other=True)
            except (RefusedError, DeclinedError, GaveUpError) as error:
                log.warning("%s does not answer %r either: %s", self._options.base_url, OTHER_TEXT, error)
                return False
            return True

    async def _complete(
        self, prompt: Prompt, sampling: SamplingOptions, keep: Callable[[Completion], None], other: bool = False
    ) -> Completion:
        """All draws of a prompt; where an exception ends it, `keep` gets those that were there.

        That an `other` text is answered does not say that prompts are.
        """
        # Greedy decoding has one answer.
        wanted = (1 if sampling.temperature == 0 else sampling.n) - len(prompt.begun)
        size = prompt_size(prompt)
        path = self._path(prompt)
        body = request_body(self._model, prompt, sampling, wanted, 0, path == CHAT, self._options.extra_body)
        # A server that gives one answer at a time reads the prompt for each.
        reads = wanted if self._one_by_one[path] is not False else 1
        aside = await self._budget.set_aside(size * reads, most_said(body))
        try:
            if self._halt.is_set():
                raise _HaltedError
            found = await self._draws(prompt, sampling, wanted + len(prompt.begun), size, keep)
            self._taken = self._taken or not other
            return found
        finally:
            self._budget.release(aside)

    async def _draws(
        self, prompt: Prompt, sampling: SamplingOptions, wanted: int, size: int, keep: Callable[[Completion], None]
    ) -> Completion:
        texts = [*prompt.begun]
        asked = said = 0
        try:
            while len(texts) < wanted:
                answer = await self._answer(prompt, sampling, wanted - len(texts), len(texts), size)
                self._budget.add(answer.prompt_tokens, answer.completion_tokens)
                texts += answer.texts
                asked += answer.prompt_tokens
                said += answer.completion_tokens
        except Exception:
            if len(texts) > len(prompt.begun):
                keep(Completion(tuple(texts), asked, said))
            raise
        return Completion(tuple(texts), asked, said)

    async def _answer(self, prompt: Prompt, sampling: SamplingOptions, left: int, draw: int, size: int) -> Answer:
        while True:
            path = self._path(prompt)
            n = 1 if self._one_by_one[path] else left
            body = request_body(self._model, prompt, sampling, n, draw, path == CHAT, self._options.extra_body)
            try:
                answer = await self._client.ask(path, body, size, self._rest)
            except RefusedError as error:
                if not self._adapt(path, n, error):
                    raise
                continue
            self._heard, self._given_up = True, 0
            self._refused.clear()
            self._answered.add(path)
            self._check_model(answer.model)
            if n > 1 and self._one_by_one[path] is None:
                self._one_by_one[path] = len(answer.texts) == 1
            return answer

    def _path(self, prompt: Prompt) -> str:
        return PLAIN if prompt.messages[0][0] == "text" and not self._chat_only else CHAT

    def _check_model(self, answered: str) -> None:
        """Some servers take any name and answer with what they have, and aliases move on to other models."""
        if answered not in self._seen_models:
            self._seen_models.add(answered)
            log.warning(
                "%s was asked for the model %r and says that %r answered; if they are not the same, name it in "
                "paraphrase.model or paraphrase.openai.revision, so that the cache can tell its answers apart",
                self._options.base_url,
                self._model,
                answered,
            )

    def _adapt(self, path: str, n: int, error: RefusedError) -> bool:
        """Whether the same can be asked for in another way."""
        # Where several at once, or plain text, were answered before, it is this prompt that is not taken.
        if n > 1 and self._one_by_one[path] is not False and error.status in (400, 422) and error.said.about_n:
            log.warning("asking for one answer at a time: %s", error)
            self._one_by_one[path] = True
            return True
        if path == PLAIN and PLAIN not in self._answered and error.status != 403:
            log.warning("plain text is asked for as a chat turn: %s", error)
            self._chat_only = True
            return True
        return False

    def _none_taken(self, declined: dict[int, str]) -> list[EngineError]:
        if self._taken or len(declined) < NONE_TAKEN:
            return []
        return [
            EngineError(
                f"{self._options.base_url} takes none of the prompts: {next(iter(declined.values()))}; serve the model "
                "with a longer context, or choose shorter prompts (paraphrase.prompts)"
            )
        ]

    def _none_speaks(self, completion: Completion) -> list[EngineError]:
        self._spoken = self._spoken or any(text.strip() for text in completion.texts)
        self._silent += 1
        if self._spoken or self._silent < NONE_SPEAKS:
            return []
        return [
            EngineError(
                f"{self._model} at {self._options.base_url} gave {self._silent} answers without a word. A model that "
                "thinks first needs more paraphrase.sampling.max_tokens, or its thinking turned off in "
                "paraphrase.openai.extra_body"
            )
        ]

    def _broken(self, in_a_row: int, why: str) -> EngineError:
        return EngineError(
            f"{in_a_row} requests in a row failed with all their retries "
            f"(paraphrase.openai.max_failures={self._options.max_failures}), last: {why}; "
            f"everything answered is kept. See to {self._options.base_url} and run again to go on from there"
        )

    def _left_over(self, call: _Call) -> EngineError:
        return EngineError(
            f"{len(call.failed)} of {len(call.prompts)} requests failed with all their retries, for "
            f"{call.named(call.failed)}: {call.failed[min(call.failed)]}; the others are kept, run again to ask for "
            "these"
        )

    async def _rest(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._halt.wait(), seconds)
        except TimeoutError:
            return
        raise _HaltedError
