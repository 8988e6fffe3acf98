"""How tests ask the engine `openai`."""

from __future__ import annotations

from collections.abc import Callable

from paraclip_core.config import SamplingOptions
from paraclip_core.paraphrase.engines.base import Completion, Prompt
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


def first_words(completions: list[Completion]) -> list[str]:
    return [completion.texts[0].rsplit(" ", 2)[0] for completion in completions]
