"""The command line. Errors meant for the user are printed as one message, without a traceback.

Exit codes: 0 done, 1 a stage failed, 2 wrong usage or configuration, 3 nothing to do (`--require-work`), 4 the verdict
is `hold` (`--gate`), 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from paraclip.flows.commands.audit import audit
from paraclip.flows.commands.common import (
    ConfigOption,
    JsonOption,
    RunRootOption,
    SetOption,
    print_facts,
    print_json,
    set_verbosity,
    settings_from,
)
from paraclip.flows.commands.deploy import deploy, serve, stop
from paraclip.flows.commands.expand import expand
from paraclip.flows.commands.init import init
from paraclip.flows.commands.paraphrase import paraphrase, requests
from paraclip.flows.commands.release import export, export_dataset, push
from paraclip.flows.commands.run import demo, evaluate, plan, promote, run
from paraclip.flows.commands.search import search
from paraclip.flows.commands.store import artifacts, cache, channel
from paraclip.flows.commands.ui import ui
from paraclip.flows.commands.verify_index import verify_index
from paraclip.storage.files import DISK_ERRORS, storage_error
from paraclip_core.config import Settings
from paraclip_core.errors import ParaclipError, with_notes
from paraclip_core.settings import describe_options
from paraclip_core.text_safety import printable

WRONG_USAGE = 2
INTERRUPTED = 130

WrongUsage: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
"""Base of all usage errors; newer versions of Typer bundle click, so it is not always click's own class."""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Repair a CLIP text encoder with LLM paraphrases; the image encoder and every image index stay as they are.",
)


def _print_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"paraclip {version('paraclip')}")
        raise typer.Exit


@app.callback()
def common(
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Show log lines of every library; -vv: debug lines, too.")
    ] = 0,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show warnings only: no log lines, bars or hints.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that come before the command."""
    set_verbosity(-1 if quiet else verbose)


for command in (
    demo,
    init,
    run,
    plan,
    paraphrase,
    evaluate,
    promote,
    expand,
    search,
    ui,
    audit,
    export,
    export_dataset,
    push,
    verify_index,
    deploy,
    serve,
    stop,
):
    app.command()(command)
app.add_typer(artifacts, name="artifacts")
app.add_typer(cache, name="cache")
app.add_typer(channel, name="channel")
app.add_typer(requests, name="requests")

config = typer.Typer(no_args_is_help=True, help="Show the settings and every option.")


@config.command()
def show(
    config: ConfigOption = None, set_: SetOption = None, root: RunRootOption = None, as_json: JsonOption = False
) -> None:
    """Print all settings, defaults included, as a file that `-c` accepts."""
    print_facts(settings_from(config, set_, root).model_dump(mode="json"), as_json)


@config.command()
def schema(as_json: JsonOption = False) -> None:
    """List every option with its type, bounds, default and description; --json prints the JSON schema for editors."""
    if as_json:
        print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()})
        return
    for path, kind, default, text in describe_options():
        typer.echo(f"{path}  ({kind}, {default})\n    {text}")


app.add_typer(config, name="config")


def run_cli(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    try:
        result = app(list(arguments), standalone_mode=False, prog_name="paraclip")
    except WrongUsage as error:
        error.show()  # pyright: ignore[reportAttributeAccessIssue]
        return WRONG_USAGE
    except ParaclipError as error:
        typer.echo(printable(f"error: {with_notes(error)}"), err=True)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output went away.
        _drop_output()
        return 1
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        # An error that no reader or writer has explained; one without a file name is mostly about our output.
        typer.echo(printable(f"error: {storage_error(error, Path(error.filename or 'the output'))}"), err=True)
        _drop_output()
        return 1
    except (KeyboardInterrupt, typer.Abort):
        result = INTERRUPTED
    # Some versions of Typer turn an interrupt into this code themselves.
    if result == INTERRUPTED:
        typer.echo("interrupted; run again to go on from there", err=True)
    return result if isinstance(result, int) else 0


def _drop_output() -> None:
    """Discard pending output, or Python would complain once more when it closes the stream."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Entry point of the `paraclip` command."""
    sys.exit(run_cli(sys.argv[1:]))


if __name__ == "__main__":
    main()
