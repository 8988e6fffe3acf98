"""The seams of paraphrasing: what an engine and a generation cache must do."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import pyarrow as pa

from paraclip_core.config import SamplingOptions

__all__ = ["Completion", "Engine", "GenerationCache", "JudgedBlocks", "PaidEngine", "Prompt", "StreamingEngine"]


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
    begun: tuple[str, ...] = ()
    """Its first answers, which were paid for before an earlier call failed; only the others are asked for."""


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
            EngineError: the engine could not start or died; its `finished` has what was answered before.
        """
        ...

    def close(self) -> None:
        """Free what it holds; it may be used again."""
        ...


@runtime_checkable
class StreamingEngine(Protocol):
    """What an engine has besides where answers come one by one and many requests can be under way."""

    def stream(
        self, prompts: Sequence[Prompt], sampling: SamplingOptions
    ) -> Generator[tuple[int, Completion], None, None]:
        """Completions as they come, each with the number of its prompt.

        Raises:
            EngineError: not every prompt has one; those that have were handed over before.
        """
        ...


@runtime_checkable
class PaidEngine(Protocol):
    """What an engine has besides where its answers cost money.

    Where it has some of a prompt's answers when it fails, its error's `begun` says so, and it goes on from a prompt's.
    """

    @property
    def spent(self) -> float:
        """Cost so far, in the currency of the configured prices."""
        ...

    def charge(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count tokens that were paid for earlier towards the spending cap."""
        ...


class GenerationCache(Protocol):
    """Every generation that was ever paid for."""

    def lookup(self, keys: pa.FixedSizeBinaryArray) -> pa.Table:
        """Columns `key` and `completions` of the known ones among `keys`, each once, in any order."""
        ...

    def append(self, generations: pa.Table) -> None:
        """Keep generations (schema `paraclip_core.tables.GENERATIONS`); on return they survive a kill."""
        ...


class JudgedBlocks(Protocol):
    """Blocks that were judged from generations that still count, each under a key of 16 bytes."""

    def find(self, key: bytes) -> Sequence[pa.RecordBatch] | None:
        """The record batches that were kept under `key`; None where there are none, or an answer may have changed."""
        ...

    def keep(self, key: bytes, before: bytes, parts: Sequence[pa.RecordBatch], asked: bool) -> None:
        """Keep a block behind the one with the key `before`; `asked`: some of its answers were asked for just now."""
        ...

    def stop(self) -> None:
        """Keep nothing more: what comes next depends on a block that cannot be kept."""
        ...
