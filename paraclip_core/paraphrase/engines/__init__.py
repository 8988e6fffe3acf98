"""Engines that paraphrase, one per file, behind :class:`paraclip_core.paraphrase.engines.base.Engine`.

`paraphrase.engine` names one of :data:`paraclip_core.engine_options.ENGINES`, or a class of the user's own as
`package.module:Class`. Every class is made in the same way: `Class(options, context)`.
"""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import Any

from paraclip_core.config import ParaphraseOptions, SamplingOptions
from paraclip_core.engine_options import ENGINES, EngineEntry
from paraclip_core.errors import ConfigError
from paraclip_core.paraphrase.engines.base import Corpus, Engine, EngineContext, EngineFacts, HashFiles, read_hashes
from paraclip_core.paths import user_path
from paraclip_core.plugins import import_path

__all__ = ["engine_facts", "make_engine", "relevant_options", "unguarded"]

MEMBERS = ("name", "model", "facts", "generate", "close")

# What is looked up depends on the text alone, and is the same however often it is asked for.
LOOKED_UP: dict[str, Any] = {
    "prompts": "paper",
    "prompt_1": "",
    "prompt_2": "",
    "synonyms": False,
    "sampling": SamplingOptions(temperature=0, n=1),
    "attempts": 1,
    "regenerate": (),
    "seed": 0,
}


def make_engine(
    options: ParaphraseOptions,
    data_root: Path | str = ".",
    device: str = "auto",
    hash_files: HashFiles = read_hashes,
    corpus: Corpus | None = None,
) -> Engine:
    """The engine that the options name; no model is loaded before the first request.

    Args:
        options: the paraphrase options.
        data_root: folder that the paths of the `file` engine are relative to.
        device: where local models compute: a torch device, or `auto`.
        hash_files: hashes the weights of a model that lies in a folder.
        corpus: captions and features of the run, where there is one.

    Raises:
        ConfigError: the class cannot be used, or an option that it needs is missing.
    """
    option, what = _entry(options).needs
    if option and not attrgetter(option)(options):
        raise ConfigError(f"paraphrase.engine={options.engine} needs paraphrase.{option}, {what}")
    return _made(options, EngineContext(user_path(data_root), device, hash_files, corpus))


def engine_facts(options: ParaphraseOptions) -> EngineFacts:
    """What the stages need to know about the engine with these options; no file is looked at.

    Raises:
        ConfigError: the class cannot be used.
    """
    return _made(options, EngineContext(Path(), "auto", read_hashes)).facts


def relevant_options(options: ParaphraseOptions) -> ParaphraseOptions:
    """The options with a fixed value for each that the chosen engine does not look at: these change neither a request's
    key nor a fingerprint.

    Raises:
        ConfigError: the class of an engine of the user's own cannot be used.
    """
    fields, entry = ParaphraseOptions.model_fields, _entry(options)
    some = {name for each in (*ENGINES.values(), EngineEntry("")) for name in each.reads}
    fixed = {name: fields[name].get_default(call_default_factory=True) for name in some.difference(entry.reads)}
    return options.model_copy(update=fixed | ({} if engine_facts(options).asks else LOOKED_UP))


def unguarded(options: ParaphraseOptions) -> str | None:
    """What to tell who has turned the gates off for the answers of a language model; None where they have not."""
    if options.chosen_gates().preset != "off" or not engine_facts(options).asks:
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
            "paraclip_core/paraphrase/engines/base.py)"
        )
    return engine
