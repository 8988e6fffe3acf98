"""Helpers with which tests ask the engine `openai`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.engines import Completion, Prompt, SamplingOptions
from paraclip_core.paraphrase.engines.openai import OpenAIEngine

TWO = SamplingOptions(n=2, temperature=0.7, top_p=0.9, max_tokens=24)
KEY = "sk-not-a-real-key-0123456789"
VARIABLE = "OPENAI_API_KEY"
Connect = Callable[..., OpenAIEngine]


def prompts_of(texts: list[str], seed: int = 0) -> list[Prompt]:
    return [Prompt((("user", text),), text, 1, seed) for text in texts]


def numbered(count: int) -> list[Prompt]:
    return prompts_of([f"caption {number}" for number in range(count)])


def ask(engine: OpenAIEngine, *texts: str, seed: int = 0, sampling: SamplingOptions = TWO) -> list[Completion]:
    return engine.generate(prompts_of(list(texts), seed), sampling)


def streamed(
    engine: OpenAIEngine, prompts: list[Prompt], sampling: SamplingOptions = TWO
) -> tuple[dict[int, Completion], EngineError]:
    """The completions that come before the engine fails, which it must, and its error."""
    completions: dict[int, Completion] = {}
    with pytest.raises(EngineError) as caught:
        completions.update(item for item in engine.stream(prompts, sampling) if item)
    return completions, caught.value


def first_words(completions: list[Completion]) -> list[str]:
    return [completion.texts[0].rsplit(" ", 2)[0] for completion in completions]
