"""What an engine that paraphrases is: its protocol, what it is given, and a row for each.

`paraphrase.engine` names a row of :data:`ENGINES`, or a class of the user's own as `package.module:Class`. Every class
is made in the same way: `Class(options, context)`. The settings are collected from here and from the engines' modules,
so no import in these modules is slow: a library that takes its time is imported where it is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

from pydantic import Field

from paraclip_core.errors import EngineError
from paraclip_core.options import Options

Own = TypeVar("Own")

SMALL_BYTES = 16 * 1024 * 1024
"""Files above this size are hashed by `HashFiles`, which may remember."""

HashFiles = Callable[[Iterable[Path]], Mapping[str, str]]
"""SHA-256 of each file, by its path; one that remembers need not read gigabytes each time."""


def read_hashes(files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file, read now."""
    hashes = {}
    for path in files:
        with path.open("rb") as file:
            hashes[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


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

    @property
    def one_line(self) -> bool:
        """Whether a line is the whole answer, as after examples; a model that only follows an instruction may begin
        with an empty one."""
        return any(role in ("text", "assistant") for role, _ in self.messages)


@dataclass(frozen=True)
class Completion:
    """What an engine answered to one prompt."""

    texts: tuple[str, ...]
    """Raw answers, `sampling.n` of them (fewer only where an engine has no more to give)."""
    prompt_tokens: int
    completion_tokens: int


class SamplingOptions(Options):
    """How the LLM draws its answers."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.8
    """0 decodes greedily."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Nucleus sampling."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 40
    """Longest answer."""
    n: Annotated[int, Field(ge=1, le=64)] = 2
    """Answers drawn for one request; the most faithful one that passes the filters is kept."""


@dataclass(frozen=True)
class EngineOptions(Generic[Own]):
    """What an engine is given of the paraphrase options: its own, and what all engines share."""

    options: Own
    """Its own: the option or group that its row names. For an engine of the user's own, `paraphrase.options`."""
    model: str = ""
    """`paraphrase.model`."""
    chunk: int = 256
    """`paraphrase.chunk`."""


@dataclass(frozen=True)
class EngineContext:
    """Where an engine works: what it needs besides its options."""

    data_root: Path | str = "."
    """Folder that relative paths of data are meant from, as the user wrote it."""
    device: str = "auto"
    """A torch device, or `auto`."""
    hash_files: HashFiles = read_hashes
    """Hashes the weights of a model in a folder."""


@dataclass(frozen=True)
class EngineFacts:
    """What the stages need to know about an engine with its options. The defaults are a model's on a GPU here."""

    local: bool = True
    """Whether the run's own processes compute the answers, on this machine's CPU cores or GPUs."""
    on_device: bool = True
    """Whether a local one computes on `run.device`, a GPU where there is one; otherwise on CPU cores alone."""
    shares_cores: bool = False
    """Whether it computes on the CPU cores that filtering takes."""
    asks: bool = True
    """Whether a language model is asked. Otherwise answers are looked up by their text alone: prompts, sampling, seed
    and attempts mean nothing."""
    look_up: Mapping[str, Any] = field(default_factory=dict)
    """Where it does not ask: what decides its answers, for the fingerprint."""
    filters: Literal["off", "capable", "small-model"] = "capable"
    """The preset that `paraphrase.filters.preset=auto` stands for."""
    every_gpu: bool = False
    """Whether it computes on all GPUs of the machine, not on one."""


class Engine(Protocol):
    """Something that completes prompts, made by calling its class with `EngineOptions` and an `EngineContext`.

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
        """One completion for each prompt, in order; EngineError if it could not start or died."""
        ...

    def close(self) -> None:
        """Free what it holds; it may be used again."""
        ...


@runtime_checkable
class CheckedEngine(Protocol):
    """What an engine also has if it can find out early, and for nothing, whether it would answer."""

    def check(self) -> None:
        """Check that it can answer, for nothing; EngineError says which option to fix."""
        ...


@runtime_checkable
class StreamingEngine(Protocol):
    """What an engine also has if answers come one by one and many requests can be under way."""

    def stream(
        self, prompts: Sequence[Prompt], sampling: SamplingOptions
    ) -> Generator[tuple[int, Completion] | None, None, None]:
        """Completions as they come, each with the number of its prompt; None now and then where none comes for a while,
        so that those before it are kept. EngineError comes after all that there are.
        """
        ...


@runtime_checkable
class PaidEngine(Protocol):
    """What an engine also has if its answers cost money."""

    @property
    def priced(self) -> bool: ...

    @property
    def max_spend(self) -> float:
        """What answers may cost, earlier runs' included, in the currency of the configured prices; 0: no cap."""
        ...

    @property
    def spent(self) -> float: ...

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Price of so many tokens."""
        ...

    def charge(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count tokens that were paid for earlier towards the spending cap."""
        ...


def local_model(folder: Path, hash_files: HashFiles = read_hashes) -> str:
    """Name of a Hugging Face folder and a hash of the names and contents of its files, the big ones by `hash_files`."""
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
    """The class that makes it, as `package.module:Class`; imported when it is used."""
    own: str = "options"
    """The paraphrase option, or group of options, that is its own."""
    needs: tuple[str, str] = ("", "")
    """The option without which it cannot work, below `paraphrase`, and what that is."""
    has_model: bool = True
    """Whether it reads `paraphrase.model`."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The paraphrase options that it reads, of those that only some engines read."""
        return ("model", self.own) if self.has_model else (self.own,)


_IN = "paraclip_core.paraphrase.engines"
_LOCAL = ("model", "the folder of a local model")
_HUB = ("model", "a model's folder or its id on the hub")
_SERVED = ("model", "the model's name at the server")
_FILE = ("file.path", "the file with your paraphrases")

ENGINES = {
    "openvino": EngineEntry(f"{_IN}.openvino:OpenVinoEngine", "precision"),
    "transformers": EngineEntry(f"{_IN}.transformers:TransformersEngine", "transformers", _LOCAL),
    "vllm": EngineEntry(f"{_IN}.vllm:VllmEngine", "vllm", _HUB),
    "openai": EngineEntry(f"{_IN}.openai:OpenAIEngine", "openai", _SERVED),
    "file": EngineEntry(f"{_IN}.file:FileEngine", "file", _FILE, has_model=False),
}
"""The engines by name. Another one is a row here, or `package.module:Class` in the settings."""
