"""The engine that the paraphrase options name, with everything derived from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

from paraclip_core.config import ParaphraseOptions
from paraclip_core.errors import ConfigError
from paraclip_core.options import import_path
from paraclip_core.paraphrase.engines import (
    ENGINES,
    Engine,
    EngineContext,
    EngineEntry,
    EngineFacts,
    EngineOptions,
    SamplingOptions,
)
from paraclip_core.paraphrase.filter_options import FilterOptions
from paraclip_core.paraphrase.prompts import PromptTemplate, prompt_for

MEMBERS = ("name", "model", "facts", "generate", "close")

HERE = EngineContext()
"""The default context of an engine."""

# A lookup depends on the text alone, and gives the same result every time.
LOOKED_UP: dict[str, Any] = {
    "prompts": "paper",
    "prompt_1": "",
    "prompt_2": "",
    "sampling": SamplingOptions(temperature=0, n=1),
    "attempts": 1,
    "seed": 0,
}


def make_engine(options: ParaphraseOptions, context: EngineContext = HERE) -> Engine:
    """The engine that the options name; no model is loaded yet."""
    check_needs(options)
    return _made(options, context)


def check_needs(options: ParaphraseOptions) -> None:
    """Raise a ConfigError if an option that the engine requires is missing."""
    option, what = _entry(options).needs
    if option and not attrgetter(option)(options):
        raise ConfigError(f"paraphrase.engine={options.engine} needs paraphrase.{option}, {what}")


def engine_facts(options: ParaphraseOptions) -> EngineFacts:
    """What the stages need to know about the engine with these options; no file is read."""
    return _made(options, HERE).facts


def relevant_options(options: ParaphraseOptions) -> ParaphraseOptions:
    """The options, with a fixed value for each one that the chosen engine does not read.

    Such options change neither a request's key nor a fingerprint.
    """
    fields, entry = ParaphraseOptions.model_fields, _entry(options)
    unread = {name for row in (*ENGINES.values(), EngineEntry("")) for name in row.reads}.difference(entry.reads)
    fixed = {name: fields[name].get_default(call_default_factory=True) for name in unread}
    return options.model_copy(update=fixed | ({} if engine_facts(options).asks else LOOKED_UP))


@dataclass
class Paraphraser:
    """The engine that the options name, with everything derived from them; each value is computed on first use."""

    given: ParaphraseOptions
    context: EngineContext = HERE

    @cached_property
    def options(self) -> ParaphraseOptions:
        """The options, with fixed values for those that the engine does not read."""
        return relevant_options(self.given)

    @cached_property
    def facts(self) -> EngineFacts:
        return engine_facts(self.options)

    @cached_property
    def filters(self) -> FilterOptions:
        """The filter options, with `auto` resolved to a preset."""
        filters = self.options.filters
        if filters.preset != "auto":
            return filters
        return filters.model_copy(update={"preset": "capable" if self.facts.asks else "off"})

    @cached_property
    def model(self) -> str:
        """Name and revision of the model, part of every request's key."""
        return self.engine().model

    @property
    def model_path(self) -> Path | None:
        """The file or folder of a language model on this machine; None if there is none, or it is named otherwise."""
        return self.context.path_of(self.given.model) if _entry(self.given).model_here and self.given.model else None

    @cached_property
    def prompts(self) -> dict[int, PromptTemplate]:
        return {step: prompt_for(self.options, step) for step in (1, 2)}

    def engine(self) -> Engine:
        """A new engine. It loads no model before its first request; close it after use."""
        return make_engine(self.options, self.context)


def unfiltered_warning(options: ParaphraseOptions) -> str | None:
    """The warning that the filters are off for answers of a language model; None if they are not."""
    paraphraser = Paraphraser(options)
    if paraphraser.filters.preset != "off" or not paraphraser.facts.asks:
        return None
    return (
        f"paraphrase.filters.preset={options.filters.preset} keeps every answer of {options.engine} that holds a "
        "word, even refusals, repeated prompts and answers that obey a caption. It is for comparisons with the "
        "published method and for your own paraphrases; otherwise leave it at auto and loosen single filters "
        "(docs/filters.md)"
    )


def _entry(options: ParaphraseOptions) -> EngineEntry:
    return ENGINES.get(options.engine) or EngineEntry(options.engine)


def _made(options: ParaphraseOptions, context: EngineContext) -> Engine:
    entry = _entry(options)
    own = EngineOptions(getattr(options, entry.own), options.model, options.chunk)
    expected = "package.module:Class, made by Class(options, context)"
    make = import_path(entry.path, f"paraphrase.engine={options.engine}", expected, own, context)
    engine = make(own, context)
    # Not `hasattr(engine, …)`: a property may be expensive, such as the hash of a model's weights.
    missing = [member for member in MEMBERS if not hasattr(type(engine), member) and member not in vars(engine)]
    if missing:
        raise ConfigError(
            f"paraphrase.engine={options.engine} is not an engine: it has no {', '.join(missing)} (see `Engine` in "
            "paraclip_core/paraphrase/engines/__init__.py)"
        )
    return engine
