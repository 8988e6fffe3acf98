"""Engines that paraphrase, one per file: what an engine is, how one is made, and what follows from its options.

`paraphrase.engine` names one of :data:`paraclip_core.config.ENGINES`, or a class of the user's own as
`package.module:Class`. Every class is made in the same way: `Class(options, context)`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from paraclip_core.config import ENGINES, EngineEntry, ParaphraseOptions, SamplingOptions
from paraclip_core.errors import ConfigError, EngineError
from paraclip_core.options import import_path
from paraclip_core.paraphrase.gate_options import GateOptions
from paraclip_core.paraphrase.requests import PromptTemplate, prompt_for

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


@dataclass(frozen=True)
class EngineContext:
    """Where an engine works: what it needs besides the paraphrase options."""

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
    """Whether it computes on the CPU cores that judging takes."""
    max_in_flight: int | None = None
    """Requests that are under way at once, at most; None: those of a chunk."""
    asks: bool = True
    """Whether a language model is asked. Otherwise answers are looked up by their text alone: prompts, sampling, seed
    and attempts mean nothing."""
    look_up: Mapping[str, Any] = field(default_factory=dict)
    """Where it does not ask: what decides its answers, for the fingerprint."""
    gates: Literal["off", "capable", "small-model"] = "capable"
    """The preset that `paraphrase.gates.preset=auto` stands for."""
    every_gpu: bool = False
    """Whether it computes on all GPUs of the machine, not on one."""


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
        """One completion for each prompt, in order; EngineError where it could not start or died."""
        ...

    def close(self) -> None:
        """Free what it holds; it may be used again."""
        ...


@runtime_checkable
class CheckedEngine(Protocol):
    """What an engine has besides where it can find out early, and for nothing, whether it would answer."""

    def check(self) -> None:
        """Look whether it can answer, for nothing; EngineError says which option to fix."""
        ...


@runtime_checkable
class StreamingEngine(Protocol):
    """What an engine has besides where answers come one by one and many requests can be under way."""

    def stream(
        self, prompts: Sequence[Prompt], sampling: SamplingOptions
    ) -> Generator[tuple[int, Completion] | None, None, None]:
        """Completions as they come, each with the number of its prompt; None now and then where none comes for a while,
        so that those before it are kept. EngineError comes after all that there are.
        """
        ...


@runtime_checkable
class PaidEngine(Protocol):
    """What an engine has besides where its answers cost money."""

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


MEMBERS = ("name", "model", "facts", "generate", "close")

# What is looked up depends on the text alone, and is the same however often it is asked for.
LOOKED_UP: dict[str, Any] = {
    "prompts": "paper",
    "prompt_1": "",
    "prompt_2": "",
    "sampling": SamplingOptions(temperature=0, n=1),
    "attempts": 1,
    "seed": 0,
}


def make_engine(options: ParaphraseOptions, context: EngineContext = EngineContext()) -> Engine:
    """The engine that the options name; no model is loaded yet."""
    check_needs(options)
    return _made(options, context)


def check_needs(options: ParaphraseOptions) -> None:
    """Raise a ConfigError if an option is missing without which the engine cannot work."""
    option, what = _entry(options).needs
    if option and not attrgetter(option)(options):
        raise ConfigError(f"paraphrase.engine={options.engine} needs paraphrase.{option}, {what}")


def engine_facts(options: ParaphraseOptions) -> EngineFacts:
    """What the stages need to know about the engine with these options; no file is looked at."""
    return _made(options, EngineContext()).facts


def relevant_options(options: ParaphraseOptions) -> ParaphraseOptions:
    """The options with a fixed value for each that the chosen engine does not look at: these change neither a request's
    key nor a fingerprint.
    """
    fields, entry = ParaphraseOptions.model_fields, _entry(options)
    some = {name for each in (*ENGINES.values(), EngineEntry("")) for name in each.reads}
    fixed = {name: fields[name].get_default(call_default_factory=True) for name in some.difference(entry.reads)}
    return options.model_copy(update=fixed | ({} if engine_facts(options).asks else LOOKED_UP))


@dataclass
class Paraphraser:
    """The engine that options name, with what follows from them; each is found out when it is asked for first."""

    given: ParaphraseOptions
    context: EngineContext = EngineContext()

    @cached_property
    def options(self) -> ParaphraseOptions:
        """The options, with fixed values for those that the engine does not read."""
        return relevant_options(self.given)

    @cached_property
    def facts(self) -> EngineFacts:
        return engine_facts(self.options)

    @cached_property
    def gates(self) -> GateOptions:
        """The gates with `auto` resolved to what suits the engine, and every threshold with its value."""
        return self.options.gates.resolved(self.facts.gates)

    @cached_property
    def model(self) -> str:
        """Name and revision of the model, a part of every request's key."""
        return self.engine().model

    @cached_property
    def judge(self) -> Paraphraser | None:
        """Who is asked whether an answer says the same as its caption; None: nobody."""
        if (options := self.given.as_judge()) is None:
            return None
        judge = Paraphraser(options, self.context)
        if not judge.facts.asks:
            raise ConfigError(
                f"paraphrase.judge: the engine {options.engine} asks no language model; name one that does, for "
                "example paraphrase.judge={engine: openai, model: NAME}"
            )
        return judge

    @cached_property
    def prompts(self) -> dict[int, PromptTemplate]:
        return {step: prompt_for(self.options, step) for step in (1, 2)}

    def asks_words(self, step: int) -> bool:
        """Whether other words for single words are asked for, too: a capable model needs none, and they cost."""
        small = self.facts.asks and self.gates.preset == "small-model"
        return small and self.prompts[step].id.startswith("few-shot")

    def engine(self) -> Engine:
        """A new engine, which loads no model before its first request; close it when it was asked."""
        return make_engine(self.options, self.context)


def unguarded(options: ParaphraseOptions) -> str | None:
    """What to tell who has turned the gates off for the answers of a language model; None where they have not."""
    paraphraser = Paraphraser(options)
    if paraphraser.gates.preset != "off" or not paraphraser.facts.asks:
        return None
    return (
        f"paraphrase.gates.preset={options.gates.preset} keeps whatever {options.engine} answers that holds a word: "
        "refusals, repeated prompts and answers that obey a caption, too. It is for comparisons with the published "
        "method and for paraphrases of your own; else leave it at auto and loosen single gates (docs/gates.md)"
    )


def _entry(options: ParaphraseOptions) -> EngineEntry:
    return ENGINES.get(options.engine) or EngineEntry(options.engine)


def _made(options: ParaphraseOptions, context: EngineContext) -> Engine:
    expected = "package.module:Class, made by Class(options, context)"
    make = import_path(_entry(options).path, f"paraphrase.engine={options.engine}", expected, options, context)
    engine = make(options, context)
    # Not `hasattr(engine, …)`: a property may be costly, such as the hash of a model's weights.
    missing = [member for member in MEMBERS if not hasattr(type(engine), member) and member not in vars(engine)]
    if missing:
        raise ConfigError(
            f"paraphrase.engine={options.engine} is no engine: it has no {', '.join(missing)} (see `Engine` in "
            "paraclip_core/paraphrase/engines/__init__.py)"
        )
    return engine
