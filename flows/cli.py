"""The command line. Errors meant for the user are printed as one message, without a traceback.

Exit codes: 0 done, 1 a stage failed, 2 wrong usage or configuration, 3 nothing to do (`--require-work`), 4 the verdict
is `hold` (`--gate`), 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version as version_of
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from paraclip_core.errors import ParaclipError, with_notes
from paraclip_core.text_safety import printable

WRONG_USAGE = 2
INTERRUPTED = 130

WrongUsage: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
"""Base of all usage errors; newer versions of Typer bundle click, so it is not always click's own class."""

COMMANDS = {
    "demo": ("run:demo", "Render captioned scenes, paraphrase, tune and compare, in minutes on two cores."),
    "init": ("init:init", "Write a configuration for captions and images, or an index and a query log."),
    "run": ("run:run", "Run every stage that is not finished, and compare the models."),
    "plan": ("plan:plan", "Show what would run, why, and what it would cost."),
    "paraphrase": ("paraphrase:paraphrase", "Try both steps on a few captions, and show every answer and filter."),
    "evaluate": ("run:evaluate", "Compare models on published benchmarks, outside any run."),
    "promote": ("run:promote", "Move a channel to a finished run's model, if that is better."),
    "expand": ("expand:expand", "Write the mean feature of each query and its paraphrases, to search any index."),
    "search": ("search:search", "Rank images for a query by the base model and by the tuned one."),
    "ui": ("ui:ui", "Serve a page to search an index by text."),
    "audit": ("audit:audit", "Measure how much an image index depends on wording, without labels or training."),
    "export": ("release:export", "Write a model for another library or for ONNX."),
    "export-dataset": ("release:export_dataset", "Write finished paraphrases as a data set."),
    "verify-index": ("verify_index:verify_index", "Prove that an image index stays valid for the tuned model."),
    "deploy": ("deploy:deploy", "Register a configuration with a Prefect server."),
    "serve": ("deploy:serve", "Run a Prefect server with workers on this machine."),
    "artifacts ls": ("store:list_artifacts", "List finished and unfinished artifacts, and the channels."),
    "artifacts show": ("store:show", "Show an artifact's manifest."),
    "artifacts verify": ("store:verify", "Compare every file with its manifest."),
    "artifacts gc": ("store:gc", "Delete what no channel's models need."),
    "cache stats": ("store:stats", "Show how many answers there are, by model and prompt."),
    "cache export": ("store:export", "Copy answers to a folder that `import` reads."),
    "cache import": ("store:import_", "Import another cache's answers."),
    "cache compact": ("store:compact", "Join many small parts into few big ones."),
    "channel history": ("store:show_history", "Show the last moves of a channel."),
    "channel rollback": ("store:rollback", "Move a channel back to an earlier model."),
    "requests export": ("paraphrase:export", "Write what a run would ask and the answers cache does not hold."),
    "requests import": ("paraphrase:import_", "Put the answers to exported requests into the answers cache."),
    "config show": ("config:show", "Print all settings as a file that `-c` accepts."),
    "config schema": ("config:schema", "List every option."),
}
"""Every command: its name → the file below `commands` with the function there, and its line in the list of commands."""

GROUPS = {
    "artifacts": "List, inspect, check and clean up artifacts.",
    "cache": "The answers cache.",
    "channel": "Show a channel and its history, and move it back.",
    "requests": "Batch files: what a run would ask, and the answers to it.",
    "config": "Show the settings and every option.",
}

options = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Repair a CLIP text encoder with LLM paraphrases; the image encoder and every image index stay as they are.",
)


class LazyCommand(typer.core.TyperCommand):
    """A row of `COMMANDS`, whose module is imported when the command is called, and not to list it."""

    def __init__(self, name: str, target: str, line: str) -> None:
        super().__init__(name, help=line)
        self.target = target

    def load(self) -> Any:
        """The command itself."""
        module, _, function = self.target.partition(":")
        single = typer.Typer(add_completion=False)
        single.command(self.name)(getattr(import_module(f"paraclip.flows.commands.{module}"), function))
        return typer.main.get_command(single)

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Parse the arguments, and from there on the command itself goes on."""
        return self.load().make_context(*args, **extra)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"paraclip {version_of('paraclip')}")
        raise typer.Exit


@options.callback()
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


def _commands(group: str) -> dict[str, Any]:
    paths = ((*path.rpartition(" "), row) for path, row in COMMANDS.items())
    return {name: LazyCommand(name, *row) for below, _, name, row in paths if below == group}


app: Any = typer.main.get_command(options)
app.commands |= _commands("")
for name, line in GROUPS.items():
    app.add_command(typer.core.TyperGroup(name=name, help=line, no_args_is_help=True, commands=_commands(name)))


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
