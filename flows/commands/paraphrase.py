"""`paraclip paraphrase` and `paraclip requests`: try captions out, and exchange batch files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from paraclip.flows.commands.common import (
    ConfigOption,
    JsonOption,
    RunDeviceOption,
    RunRootOption,
    SetOption,
    print_facts,
    print_json,
    print_table,
    say,
    settings_from,
)
from paraclip.tasks.batch_files import export_requests, import_answers
from paraclip.tasks.preflight import check_before_paying
from paraclip.tasks.run.run import Run
from paraclip.tasks.run.status import shown_progress
from paraclip.tasks.trial import Trial, TriedCaption, try_captions
from paraclip_core.text_safety import printable


def paraphrase(
    captions: Annotated[list[str], typer.Argument(metavar="CAPTION...", help="Captions to try.")],
    config: ConfigOption = None,
    set_: SetOption = None,
    root: RunRootOption = None,
    device: RunDeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try both steps on a few captions: raw answers, what was parsed from them, and what the filters say.

    Answers that the root's answers cache holds are used, and new ones are kept there: a run does not ask for them
    again. No stage runs.
    """
    run = Run(settings_from(config, set_, root, device))
    with shown_progress("paraphrase", lambda line: typer.echo(printable(line), err=True)) as progress:
        trial = try_captions(run, list(dict.fromkeys(captions)), progress)
    if as_json:
        print_json(asdict(trial))
    else:
        _print(trial)


def _print(trial: Trial) -> None:
    metrics = trial.metrics
    for number, caption in enumerate(trial.captions, 1):
        _print_caption(number, caption)
    if not metrics:
        return
    complete = sum(any(second for _, second in caption.pairs) for caption in trial.captions)
    spend = f", which cost {metrics['spend']:.4g}" if "spend" in metrics else ""
    say(f"\n{complete} of {len(trial.captions)} captions have both paraphrases")
    say(
        f"{metrics['engine']}, {metrics['model']}: {metrics['generated']} requests asked ({metrics['prompt_tokens']} "
        f"prompt tokens, {metrics['completion_tokens']} answered{spend}), {metrics['cached']} cached"
    )
    if trial.facts is not None:
        say(f"the paraphrasing model {trial.facts}")


def _print_caption(number: int, caption: TriedCaption) -> None:
    say(f"\n{number}. {caption.caption}")
    if caption.left_out:
        say(f"not asked, because ingest would leave it out: {caption.left_out}")
    for attempt in caption.attempts:
        rows = [{**answer, "kept": "yes" if answer["parsed"] in attempt.kept else ""} for answer in attempt.answers]
        say(f"step {attempt.step}: {attempt.input}")
        print_table("", ["raw", "parsed", "kept"], rows)
        if attempt.reason:
            say(f"{attempt.reason}: {attempt.detail}")
    for first, second in caption.pairs:
        say(f"=> {first}\n=> {second or 'nothing, so the row is left out'}")
    if caption.attempts and not caption.pairs:
        say("=> nothing, so the row is left out")


def export(
    file: Annotated[Path, typer.Argument(dir_okay=False, help="JSONL file to write; an existing one is replaced.")],
    config: ConfigOption = None,
    set_: SetOption = None,
    root: RunRootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write what a run would ask and the answers cache does not hold, for OpenAI's Batch API or `vllm run-batch`.

    Step 2 asks about accepted answers of step 1: export and import once for each step. If nothing is missing, the file
    is empty.
    """
    run = Run(settings_from(config, set_, root))
    for notice in check_before_paying(run):
        typer.echo(printable(notice), err=True)
    with shown_progress("requests") as progress:
        exported = export_requests(run, file, progress=progress)
    print_facts({**asdict(exported), "requests": exported.requests}, as_json)


def import_(
    files: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, metavar="FILE...", help="JSONL files with the answers.")
    ],
    config: ConfigOption = None,
    set_: SetOption = None,
    root: RunRootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put the answers to exported requests into the answers cache, where `plan` and `run` find them.

    Give the same settings as for the export. Unusable lines are written to FILE.rejects.parquet, with reasons.
    """
    settings = settings_from(config, set_, root)
    with shown_progress("requests") as progress:
        imported = import_answers(Run(settings), files, progress)
    print_facts(asdict(imported), as_json)
