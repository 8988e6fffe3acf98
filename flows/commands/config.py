"""`paraclip config`: the settings as they are, and every option that there is."""

from __future__ import annotations

import typer

from paraclip.flows.commands.common import (
    ConfigOption,
    JsonOption,
    RunRootOption,
    SetOption,
    print_facts,
    print_json,
    settings_from,
)
from paraclip_core.config import Settings
from paraclip_core.settings import describe_options


def show(
    config: ConfigOption = None, set_: SetOption = None, root: RunRootOption = None, as_json: JsonOption = False
) -> None:
    """Print all settings, defaults included, as a file that `-c` accepts."""
    print_facts(settings_from(config, set_, root).model_dump(mode="json"), as_json)


def schema(as_json: JsonOption = False) -> None:
    """List every option with its type, bounds, default and description; --json prints the JSON schema for editors."""
    if as_json:
        print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()})
        return
    for path, kind, default, text in describe_options():
        typer.echo(f"{path}  ({kind}, {default})\n    {text}")
