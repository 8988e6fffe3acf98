"""The seams of paraphrasing: what an engine and a generation cache must do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from paraclip_core.config import SamplingOptions

__all__ = ["Completion", "Engine", "GenerationCache", "Prompt"]


@dataclass(frozen=True)
class Prompt:
    """One request to an engine."""

    messages: tuple[tuple[str, str], ...]
    """Chat turns as (role, content); the roles are system, user and assistant. A single message of the role `text`
    is plain text to go on with; an engine that can only chat sends it as the user's turn."""
    text: str
    """The text that is to be paraphrased, which the last turn contains."""
    step: int
    """1 or 2; 0 where a single word is asked for."""
    seed: int
    """Seed of this request's sampling."""


@dataclass(frozen=True)
class Completion:
    """What an engine answered to one prompt."""

    texts: tuple[str, ...]
    """Raw answers, `sampling.n` of them (fewer only where an engine has no more to give)."""
    prompt_tokens: int
    completion_tokens: int


class Engine(Protocol):
    """Something that completes prompts. Loading is lazy: a run whose every answer is cached never loads a model."""

    @property
    def name(self) -> str:
        """Name in the configuration."""
        ...

    @property
    def model(self) -> str:
        """Model id and revision; part of every request key, known without loading the model."""
        ...

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        """One completion for each prompt, in order.

        Raises:
            EngineError: the engine could not start or died.
        """
        ...

    def close(self) -> None:
        """Free what it holds; it may be used again."""
        ...


class GenerationCache(Protocol):
    """Every generation that was ever paid for."""

    def lookup(self, keys: pa.FixedSizeBinaryArray) -> pa.Table:
        """Columns `key` and `completions` of the known ones among `keys`, each once, in any order."""
        ...

    def append(self, generations: pa.Table) -> None:
        """Keep generations (schema `paraclip_core.tables.GENERATIONS`); on return they survive a kill."""
        ...
