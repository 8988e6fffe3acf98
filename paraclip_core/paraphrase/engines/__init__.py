"""The engines that paraphrase: their protocol, what they are given, and a table of them.

`paraphrase.engine` names a row of :data:`ENGINES`, or a custom class as `package.module:Class`. Every class is
constructed as `Class(options, context)`. The settings are collected from here and from the engines' modules, so these
modules import nothing slow: a slow library is imported where it is used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Protocol, TypeVar, runtime_checkable

from pydantic import Field

from paraclip_core.errors import EngineError
from paraclip_core.options import Options
from paraclip_core.paths import expand

Own = TypeVar("Own")

SMALL_BYTES = 16 * 1024 * 1024
"""Files above this size are hashed by `HashFiles`, which may cache the hashes."""

HashFiles = Callable[[Iterable[Path]], Mapping[str, str]]
"""SHA-256 of each file, by path. A caching implementation avoids reading gigabytes each time."""


def read_hashes(files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file, computed without a cache."""
    hashes = {}
    for path in files:
        with path.open("rb") as file:
            hashes[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


@dataclass(frozen=True)
class Prompt:
    """One request to an engine."""

    messages: tuple[tuple[str, str], ...]
    """Chat turns as (role, content); the roles are system, user and assistant."""
    text: str
    """The text to paraphrase, which the last turn contains."""
    step: int
    """1 or 2."""
    seed: int
    """Seed of this request's sampling."""

    @property
    def one_line(self) -> bool:
        """Whether the whole answer is one line, as after examples. A model that only follows an instruction may begin
        with an empty line."""
        return any(role == "assistant" for role, _ in self.messages)


@dataclass(frozen=True)
class Completion:
    """An engine's answer to one prompt."""

    texts: tuple[str, ...]
    """Raw answers, `sampling.n` of them (fewer only if an engine has no more to give)."""
    prompt_tokens: int
    completion_tokens: int


class SamplingOptions(Options):
    """How the LLM samples its answers."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.8
    """0 decodes greedily."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Nucleus sampling."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 40
    """Longest answer."""
    n: Annotated[int, Field(ge=1, le=64)] = 2
    """Answers drawn for one request; the most faithful one that passes the filters is kept."""

    @property
    def draws(self) -> int:
        """Answers per request: greedy decoding has one."""
        return 1 if self.temperature == 0 else self.n


@dataclass(frozen=True)
class EngineOptions(Generic[Own]):
    """The paraphrase options that an engine receives: its own, and those that all engines share."""

    options: Own
    """The engine's own option or group, as its row names it. For a custom engine, `paraphrase.options`."""
    model: str = ""
    """`paraphrase.model`."""
    chunk: int = 256
    """`paraphrase.chunk`."""


@dataclass(frozen=True)
class EngineContext:
    """What an engine needs in addition to its options."""

    data_root: Path | str = "."
    """Folder that relative data paths start from, as the user wrote it."""
    device: str = "auto"
    """A torch device, or `auto`."""
    hash_files: HashFiles = read_hashes
    """Hashes the weights of a model in a folder."""
    options_at: str = "paraphrase"
    """Where the engine's options are, for messages: `evaluate.queries` for those of held-out queries."""

    def path_of(self, model: str) -> Path:
        """Where `paraphrase.model` is if it names a file or folder: from where paraclip is called or, if nothing is
        there, from `data.root`."""
        path = expand(model)
        below = expand(self.data_root) / path
        # Unlike `Path.exists`, this accepts any text: a name too long for a file is none either.
        return below if os.path.exists(below) and not os.path.exists(path) else path  # noqa: PTH110


@dataclass(frozen=True)
class EngineFacts:
    """What the stages need to know about an engine with its options. The defaults describe a model on a local GPU."""

    local: bool = True
    """Whether the run's own processes compute the answers, on this machine's CPU cores or GPUs."""
    on_device: bool = True
    """Whether a local engine computes on `run.device`, a GPU if there is one. Otherwise it computes on CPU cores
    alone."""
    shares_cores: bool = False
    """Whether it computes on the CPU cores that filtering uses."""
    asks: bool = True
    """Whether it calls a language model. Otherwise answers are looked up by text alone, and prompts, sampling, seed and
    attempts have no effect."""
    look_up: Mapping[str, Any] = field(default_factory=dict)
    """If it calls no language model: what decides its answers, for the fingerprint."""
    each_draw: bool = False
    """Whether it sends the prompt once for each of `sampling.n` answers."""
    every_gpu: bool = False
    """Whether it computes on all GPUs of the machine instead of one."""


class Engine(Protocol):
    """Something that completes prompts, constructed from `EngineOptions` and an `EngineContext`.

    Construction is cheap and loading is lazy: a run whose answers are all cached never loads a model.
    """

    @property
    def name(self) -> str:
        """Name for reports and the cache's column `engine`."""
        ...

    @property
    def model(self) -> str:
        """Model id and revision, and every option that changes an answer. Part of every request key, and known without
        loading the model."""
        ...

    @property
    def facts(self) -> EngineFacts:
        """What the stages need to know, available without reading any file."""
        ...

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> list[Completion]:
        """Return one completion per prompt, in order. Raises EngineError if the engine cannot start or dies."""
        ...

    def close(self) -> None:
        """Free its resources; the engine can be used again."""
        ...


@runtime_checkable
class CheckedEngine(Protocol):
    """An engine that can check early, at no cost, whether it would answer."""

    def check(self) -> None:
        """Check that it can answer, at no cost. The EngineError names the option to fix."""
        ...


@runtime_checkable
class StreamingEngine(Protocol):
    """An engine whose answers arrive one by one, with many requests in flight."""

    def stream(
        self, prompts: Sequence[Prompt], sampling: SamplingOptions
    ) -> Generator[tuple[int, Completion] | None, None, None]:
        """Yield completions as they arrive, each with the number of its prompt. Yields None now and then if none
        arrives for a while, so that the caller can store the earlier ones. EngineError is raised after all completions
        are yielded.
        """
        ...


@runtime_checkable
class PaidEngine(Protocol):
    """An engine whose answers cost money."""

    @property
    def priced(self) -> bool: ...

    @property
    def max_spend(self) -> float:
        """Spending cap for answers, earlier runs included, in the currency of the configured prices; 0: no cap."""
        ...

    @property
    def cap(self) -> str:
        """The option that sets the spending cap, for messages."""
        ...

    @property
    def spent(self) -> float: ...

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Price of this many tokens."""
        ...

    def charge(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count tokens paid for earlier towards the spending cap."""
        ...


def local_model(folder: Path, hash_files: HashFiles = read_hashes) -> str:
    """Name of a Hugging Face folder and a hash of its files' names and contents; `hash_files` hashes the big ones."""
    digest = hashlib.blake2b(digest_size=12)
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        if not any(path.name == "config.json" for path in files):
            raise EngineError(f"paraphrase.model: {folder} has no config.json; expected a Hugging Face folder")
        sizes = {path: path.stat().st_size for path in files}
        big = hash_files([path for path in files if sizes[path] > SMALL_BYTES])
        for path in files:
            digest.update(f"{path.name}\0{sizes[path]}\0".encode())
            digest.update(big[str(path)].encode() if str(path) in big else path.read_bytes())
    except OSError as error:
        raise EngineError(f"paraphrase.model: cannot read {folder}: {error.strerror or error}") from error
    return f"{folder.name}@{digest.hexdigest()}"


@dataclass(frozen=True)
class EngineEntry:
    """An engine that `paraphrase.engine` can name."""

    path: str
    """The engine class, as `package.module:Class`; imported on use."""
    own: str = "options"
    """The engine's own paraphrase option or option group."""
    needs: tuple[str, str] = ("", "")
    """The option below `paraphrase` that it requires, and a description of it."""
    has_model: bool = True
    """Whether it reads `paraphrase.model`."""
    model_here: bool = False
    """Whether `paraphrase.model`, if set, is a file or folder on this machine."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The paraphrase options it reads, among those that only some engines read."""
        return ("model", self.own) if self.has_model else (self.own,)


_IN = "paraclip_core.paraphrase.engines"
_LOCAL = ("model", "the folder of a local model")
_HUB = ("model", "a model's folder or its id on the hub")
_SERVED = ("model", "the model's name at the server")
_FILE = ("file.path", "the file with your paraphrases")

ENGINES = {
    "openvino": EngineEntry(f"{_IN}.openvino:OpenVinoEngine", "precision", model_here=True),
    "transformers": EngineEntry(f"{_IN}.transformers:TransformersEngine", "transformers", _LOCAL, model_here=True),
    "vllm": EngineEntry(f"{_IN}.vllm:VllmEngine", "vllm", _HUB),
    "openai": EngineEntry(f"{_IN}.openai:OpenAIEngine", "openai", _SERVED),
    "file": EngineEntry(f"{_IN}.file:FileEngine", "file", _FILE, has_model=False),
}
"""The engines by name. To add one, add a row here, or set `package.module:Class` in the settings."""
