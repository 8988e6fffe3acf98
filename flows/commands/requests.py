"""`paraclip requests`: what a run would ask as a batch file, and the answers back into the generation cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flows.commands.common import ConfigOption, JsonOption, SetOption, print_json, printable, say, settings_from
from paraclip_core.progress import Progress

if TYPE_CHECKING:
    from tasks.batch_export import Exported
    from tasks.batch_import import Imported

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Batch files: what a run would ask, and the answers to it.")


@app.command()
def export(
    file: Annotated[Path, typer.Argument(dir_okay=False, help="JSONL to write; one that is there is replaced.")],
    config: ConfigOption = None,
    set_: SetOption = None,
    step: Annotated[int | None, typer.Option(min=1, max=2, help="Only this step's requests.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write what a run would ask and the generation cache does not hold, for OpenAI's Batch API or `vllm run-batch`.

    Step 2 asks about accepted answers of step 1: export and import once for each step. Where nothing is missing, the
    file is empty.
    """
    from storage.roots import open_store
    from tasks.batch_export import BOTH_STEPS, export_requests

    settings = settings_from(config, set_)
    with _watched() as progress:
        steps = BOTH_STEPS if step is None else (step,)
        exported = export_requests(settings, open_store(settings.run.root), file, steps, progress)
    if as_json:
        print_json(exported.as_json())
    else:
        _print_exported(exported, step)


@app.command("import")
def import_(
    files: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, metavar="FILE...", help="JSONL that came back.")
    ],
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put the answers to exported requests into the generation cache, where `plan` and `run` find them.

    Give the same settings as for the export. Lines of no use are written to FILE.rejects.parquet, with reasons.
    """
    from storage.roots import open_store
    from tasks.batch_import import import_answers

    settings = settings_from(config, set_)
    with _watched() as progress:
        imported = import_answers(settings, open_store(settings.run.root), files, progress)
    if as_json:
        print_json(imported.as_json())
    else:
        _print_imported(imported)


@contextmanager
def _watched() -> Iterator[Progress]:
    """A progress that a terminal shows on standard error."""
    with Console(stderr=True).status("looking for captions and answers") as status:

        def progress(done: int, total: int | None, **facts: float | int | str) -> None:
            of = "" if total is None else f" of {total}"
            status.update(printable(f"{facts.get('phase', '')}: {done}{of}"))

        yield progress


def _print_exported(exported: Exported, step: int | None) -> None:
    if exported.requests:
        counts = f"{exported.step_1} of step 1, {exported.step_2} of step 2"
        say(f"{exported.requests} requests ({counts}) to {exported.model} in {exported.file}")
    else:
        say(f"nothing to ask{'' if step is None else f' at step {step}'}; {exported.file} is empty")
    if exported.unanswered_1 and step != 1:
        say("what step 2 asks about their answers is exported when these are imported")
    if exported.words:
        say(
            "single words (paraphrase.synonyms) are in no batch file: the run asks for them itself, before it judges "
            "an answer; set paraphrase.synonyms=false where it cannot"
        )
    if exported.unjudged:
        say(
            f"{exported.unjudged} answers wait for these words to be judged, and what follows from them is not exported"
        )


def _print_imported(imported: Imported) -> None:
    say(f"{imported.new} answers of {imported.lines} lines are in the cache now")
    notes = {
        "were answered before": imported.answered,
        "repeat a line before them": imported.repeated,
        "were declined by the server, which counts as an answer": imported.declined,
        "have fewer answers than were asked for": imported.short,
    }
    for note, count in notes.items():
        if count:
            say(f"{count} {note}")
    if imported.new:
        spend = "" if imported.spend is None else f", which cost {imported.spend:.4g}"
        say(f"{imported.prompt_tokens} prompt tokens and {imported.completion_tokens} answered ones{spend}")
    if imported.rejected:
        reasons = ", ".join(f"{reason} {count}" for reason, count in imported.rejected.items())
        say(f"{sum(imported.rejected.values())} lines are of no use ({reasons}), see {', '.join(imported.rejects)}")
