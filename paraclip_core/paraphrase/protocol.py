"""The seams of paraphrasing: what an engine and a generation cache must do."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import pyarrow as pa

from paraclip_core.config import SamplingOptions

if TYPE_CHECKING:
    import duckdb

__all__ = [
    "CheckedEngine",
    "Completion",
    "Engine",
    "EngineContext",
    "EngineFacts",
    "GenerationCache",
    "HashFiles",
    "PaidEngine",
    "Prompt",
    "StreamingEngine",
]

HashFiles = Callable[[Iterable[Path]], Mapping[str, str]]
"""SHA-256 of each file, by its path; one that remembers need not read gigabytes each time."""


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


@dataclass(frozen=True)
class EngineContext:
    """Where an engine works: what it needs besides the paraphrase options."""

    data_root: Path
    """Folder that relative paths of data are meant from."""
    device: str
    """A torch device, or `auto`."""
    hash_files: HashFiles
    """Hashes the weights of a model in a folder."""


@dataclass(frozen=True)
class EngineFacts:
    """What the stages need to know about an engine with its options. The defaults are a model's on a GPU here."""

    paid: bool = False
    """Whether answers may cost money."""
    local: bool = True
    """Whether the run's own processes compute the answers, on this machine's CPU cores or GPUs."""
    shares_cores: bool = False
    """Whether it computes on the CPU cores that judging takes."""
    deterministic: bool = False
    """Whether a request gets the same answers whatever is computed beside it."""
    max_in_flight: int | None = None
    """Requests that are under way at once, at most; None: those of a chunk."""
    asks: bool = True
    """Whether a language model is asked. Otherwise answers are looked up by their text alone: prompts, sampling, seed
    and attempts mean nothing."""
    gates: Literal["off", "capable", "small-model"] = "capable"
    """The preset that `paraphrase.gates.preset=auto` stands for."""
    one_process: str | None = None
    """Why requests are better not divided among processes; None where they may be."""
    one_process_a_machine: str | None = None
    """Why they are better not divided among processes of one machine; None where they may be."""

    def unshardable(self, one_machine: bool) -> str | None:
        """Why shards would be of no use; None where requests may be divided.

        Args:
            one_machine: all shards would run on this machine.
        """
        return self.one_process or (self.one_process_a_machine if one_machine else None)


class Engine(Protocol):
    """Something that completes prompts, made by calling its class with the paraphrase options and an `EngineContext`.

    Making one is cheap and loading is lazy: a run whose every answer is cached never loads a model.
    """

    @property
    def name(self) -> str:
        """Name for reports and the cache's column `engine`."""
        ...

    @property
    def model(self) -> str:
        """Model id and revision, and every option that changes an answer; part of every request key, known without
        loading the model."""
        ...

    @property
    def facts(self) -> EngineFacts:
        """What the stages need to know, known without looking at any file."""
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
class CheckedEngine(Protocol):
    """What an engine has besides where it can find out early, and for nothing, whether it would answer."""

    def check(self) -> None:
        """Look whether it can be asked; no answer is drawn, and none is paid for.

        Raises:
            EngineError: it cannot; says which option to mend.
        """
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
    def priced(self) -> bool:
        """Whether it is known what tokens cost."""
        ...

    @property
    def max_spend(self) -> float:
        """What answers may cost, earlier runs' included, in the currency of the configured prices; 0: no cap."""
        ...

    @property
    def spent(self) -> float:
        """Cost so far."""
        ...

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Price of so many tokens."""
        ...

    def charge(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count tokens that were paid for earlier towards the spending cap."""
        ...


class GenerationCache(Protocol):
    """Every generation that was ever paid for, and every verdict on one."""

    def attached(self, con: duckdb.DuckDBPyConnection) -> AbstractContextManager[None]:
        """Everything as tables `cache.generations` and `cache.verdicts` of `con`, for as long as the context lasts."""
        ...

    def lookup(self, keys: pa.FixedSizeBinaryArray) -> pa.Table:
        """Columns `key` and `completions` of the known ones among `keys`, each once, in any order."""
        ...

    def append(self, generations: pa.Table) -> None:
        """Keep generations (schema `paraclip_core.tables.GENERATIONS`); on return they survive a kill."""
        ...

    def append_verdicts(self, verdicts: pa.Table) -> None:
        """Keep verdicts (schema `paraclip_core.tables.VERDICTS`); on return they survive a kill."""
        ...
