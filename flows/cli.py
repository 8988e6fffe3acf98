"""The command line. Errors meant for the user are printed as one message, without a traceback.

Exit codes: 0 done, 1 a stage failed, 2 wrong usage or configuration, 3 nothing to do (`--require-work`), 4 the verdict
is `hold` (`--gate`), 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version as version_of
from typing import Annotated

import typer

from paraclip.flows.command_table import command_group
from paraclip_core.errors import ParaclipError, with_notes
from paraclip_core.text_safety import printable

WRONG_USAGE = 2
INTERRUPTED = 130

WrongUsage: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
"""Base of all usage errors; newer versions of Typer bundle click, so it is not always click's own class."""

COMMANDS = {
    "demo": "run:demo",
    "init": "init:init",
    "run": "run:run",
    "plan": "plan:plan",
    "paraphrase": "paraphrase:paraphrase",
    "evaluate": "run:evaluate",
    "promote": "run:promote",
    "expand": "expand:expand",
    "search": "search:search",
    "ui": "ui:ui",
    "audit": "audit:audit",
    "export": "release:export",
    "export-dataset": "release:export_dataset",
    "verify-index": "verify_index:verify_index",
    "deploy": "deploy:deploy",
    "serve": "deploy:serve",
    "artifacts ls": "store:list_artifacts",
    "artifacts show": "store:show",
    "artifacts verify": "store:verify",
    "artifacts gc": "store:gc",
    "cache stats": "store:stats",
    "cache export": "store:export",
    "cache import": "store:import_",
    "cache compact": "store:compact",
    "channel history": "store:show_history",
    "channel rollback": "store:rollback",
    "requests export": "paraphrase:export",
    "requests import": "paraphrase:import_",
    "config show": "config:show",
    "config schema": "config:schema",
}
"""Every command: its name → the file below `commands` and the function there."""

GROUPS = {
    "artifacts": "List, inspect, check and clean up artifacts.",
    "cache": "The answers cache.",
    "channel": "Show a channel and its history, and move it back.",
    "requests": "Batch files: what a run would ask, and the answers to it.",
    "config": "Show the settings and every option.",
}

app = typer.Typer(
    cls=command_group({name: f"paraclip.flows.commands.{target}" for name, target in COMMANDS.items()}, GROUPS),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Repair a CLIP text encoder with LLM paraphrases; the image encoder and every image index stay as they are.",
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"paraclip {version_of('paraclip')}")
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


def set_verbosity(steps: int) -> None:
    """Choose which log lines reach standard error: warnings (-1), those and the lines of `paraclip run` (0), INFO of
    every library and of Prefect (1), or DEBUG (2)."""
    # Nothing at INFO is created at all, bars included.
    logging.disable(logging.INFO if steps < 0 else logging.NOTSET)
    if steps > 0:
        level = logging.INFO if steps == 1 else logging.DEBUG
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", logging.getLevelName(level))


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
    except OSError as error:
        # A broken pipe: the reader of our output went away.
        if not isinstance(error, BrokenPipeError):
            typer.echo(printable(f"error: {error}"), err=True)
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
