"""The options `--regenerate` and `--regenerate-where`: short for entries of `paraphrase.regenerate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer

from paraclip_core.config import RegenerateOptions, Settings
from paraclip_core.errors import ConfigError
from paraclip_core.paraphrase.engines import engine_facts

__all__ = ["ReasonOption", "WhereOption", "asking_again", "how_to_keep"]

ReasonOption = Annotated[
    list[str] | None,
    typer.Option("--regenerate", metavar="reason=CODE", help="Ask again for rows rejected with this reason."),
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option("--regenerate-where", metavar="SQL", help="Ask again for rows that fit, e.g. 'similarity < 0.8'."),
]


def asking_again(settings: Settings, reasons: Sequence[str] | None, wheres: Sequence[str] | None) -> Settings:
    """The settings with one more entry of `paraphrase.regenerate` for each option.

    Raises:
        ConfigError: an option is not of its form, or the engine would only give the same answers again.
    """
    entries = [RegenerateOptions(reason=_code(text)) for text in reasons or ()]
    for text in wheres or ():
        if not text.strip():
            raise ConfigError("--regenerate-where is empty; expected a condition, for example 'similarity < 0.8'")
        entries.append(RegenerateOptions(where=text))
    if not entries:
        return settings
    chosen = settings.paraphrase
    if not engine_facts(chosen).asks:
        raise ConfigError(
            f"paraphrase.engine={chosen.engine} gives the same answers however often it is asked; edit what it reads"
        )
    changed = chosen.model_copy(update={"regenerate": (*chosen.regenerate, *entries)})
    return settings.model_copy(update={"paraphrase": changed})


def how_to_keep(settings: Settings) -> str:
    """What to write into the configuration, so that later runs find the same answers."""
    entries = [entry.model_dump(exclude_defaults=True) for entry in settings.paraphrase.regenerate]
    return (
        "a run without these options finds the answers from before; to keep the new ones, write under `paraphrase:`\n"
        f"  regenerate: {json.dumps(entries, ensure_ascii=False)}"
    )


def _code(text: str) -> str:
    name, separator, code = text.partition("=")
    if name.strip() != "reason" or not separator or not code.strip():
        raise ConfigError(f"--regenerate {text!r} must look like reason=echo; for anything else use --regenerate-where")
    return code.strip()
