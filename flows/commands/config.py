"""`paraclip config`: the settings as they are read, and every option that there is."""

from __future__ import annotations

import typer

from flows.commands.common import ConfigOption, JsonOption, SetOption, print_json, settings_from
from paraclip_core.config import Settings
from paraclip_core.settings import describe_options

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Show the settings and every option.")


@app.command()
def show(config: ConfigOption = None, set_: SetOption = None, as_json: JsonOption = False) -> None:
    """The whole settings, defaults included, as a file that `-c` takes."""
    tree = settings_from(config, set_).model_dump(mode="json")
    if as_json:
        print_json(tree)
        return
    import yaml

    typer.echo(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), nl=False)


@app.command()
def schema(as_json: JsonOption = False) -> None:
    """Every option with its type, bounds, default and description; a JSON schema with --json."""
    if as_json:
        print_json(Settings.model_json_schema())
        return
    for path, kind, default, text in describe_options():
        typer.echo(f"{path}  ({kind}, {default})\n    {text}")
