"""Engines without a model, for tests of what happens to their answers. `paraphrase.engine` can name them, too."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.engines import (
    Completion,
    EngineContext,
    EngineFacts,
    EngineOptions,
    Prompt,
    SamplingOptions,
)

Answer = Callable[[Prompt], Sequence[str]]


def well(prompt: Prompt) -> tuple[str, ...]:
    """An answer that always differs from the input."""
    return (f"well {prompt.text}",)


class Scripted:
    """Answers by a function of the prompt; it remembers its prompts and may fail after some calls."""

    facts = EngineFacts()

    def __init__(self, answer: Answer = well, calls: int = 1_000_000, name: str = "scripted") -> None:
        self.name, self.model = name, f"{name}-1"
        self.asked: list[Prompt] = []
        self._answer, self._calls = answer, calls

    @property
    def texts(self) -> list[str]:
        """The texts that it was asked about."""
        return [prompt.text for prompt in self.asked]

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        if not self._calls:
            raise EngineError("died")
        self._calls -= 1
        self.asked += prompts
        return [Completion(tuple(self._answer(prompt)), 10, 5) for prompt in prompts]

    def close(self) -> None:
        pass


class Streaming(Scripted):
    """Streams completions of all prompts, or of some in a given order, then fails or ends."""

    def __init__(
        self, order: Sequence[int] | None = None, failure: BaseException | None = None, answer: Answer = well
    ) -> None:
        super().__init__(answer, name="streaming")
        self._order, self._failure = order, failure
        self.closed = False

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        raise AssertionError("a stream is there")

    def stream(
        self, prompts: Sequence[Prompt], sampling: SamplingOptions
    ) -> Generator[tuple[int, Completion], None, None]:
        self.asked += prompts
        try:
            for number in range(len(prompts)) if self._order is None else self._order:
                yield number, Completion(tuple(self._answer(prompts[number])), 10, 5)
            if self._failure:
                raise self._failure
        finally:
            self.closed = True


class Writer(Scripted):
    """Gives answers that are good, the same for many inputs, echoes or empty, by text and draw."""

    def __init__(self, options: EngineOptions[Any], context: EngineContext) -> None:
        super().__init__(_uneven, name="writer")
        self.model = f"writer {options.model}"


def _uneven(prompt: Prompt) -> tuple[str, ...]:
    number = next((int(word) for word in prompt.text.split() if word.isdigit()), 0)
    if prompt.seed and number % 3:
        number += 1
    if number % 4 == 0:
        return ("near the street the car is slow",)
    if number % 2:
        return (prompt.text if number % 8 == 1 else "",)
    place = "near the street" if prompt.step == 1 else "close to a road"
    return (f"{place} the car {number} is fast",)


class Well(Scripted):
    """The plain engine, as settings name it."""

    def __init__(self, options: EngineOptions[Any], context: EngineContext) -> None:
        super().__init__()
        self.model = f"well {options.model}"


class Several(Well):
    """Two different answers to each prompt."""

    def __init__(self, options: EngineOptions[Any], context: EngineContext) -> None:
        super().__init__(options, context)
        self._answer = lambda prompt: (f"first {prompt.text}", f"second {prompt.text}")


class Refusing(Well):
    """Fails if it is asked anything."""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        raise AssertionError(f"asked about {len(prompts)} texts")
