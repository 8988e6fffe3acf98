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
from paraclip.tasks.trial import Attempt, Trial, TriedCandidate, TriedCaption, try_captions
from paraclip_core.text_safety import printable


def paraphrase(
    captions: Annotated[list[str], typer.Argument(metavar="CAPTION...", help="Captions to try.")],
    config: ConfigOption = None,
    set_: SetOption = None,
    root: RunRootOption = None,
    device: RunDeviceOption = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Put the answers into the root's answers cache, where runs find them.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Try both steps on a few captions: raw answers, what was parsed from them, each filter's result, the choice.

    Answers that the root's answers cache holds are used. Nothing is kept without --keep, and no stage runs.
    """
    settings = settings_from(config, set_, root, device)
    trial = try_captions(
        Run(settings), list(dict.fromkeys(captions)), keep, lambda line: typer.echo(printable(line), err=True)
    )
    if as_json:
        print_json(asdict(trial))
    else:
        _print(trial)


def _print(trial: Trial) -> None:
    say(f"engine {trial.engine}, model {trial.model}")
    say(f"filters of preset {trial.preset}: {', '.join(trial.filters)}")
    for number, caption in enumerate(trial.captions, 1):
        _print_caption(number, caption)
    complete = sum(any(paraphrase.paraphrase_2 for paraphrase in caption.paraphrases) for caption in trial.captions)
    spend = "" if trial.spend is None else f", which cost {trial.spend:.4g}"
    say(f"\n{complete} of {len(trial.captions)} captions have both paraphrases")
    say(
        f"{trial.asked} requests asked ({trial.prompt_tokens} prompt tokens, {trial.completion_tokens} answered"
        f"{spend}), {trial.cached} cached"
    )
    if trial.facts is not None:
        say(f"the paraphrasing model {trial.facts}")
    if trial.asked:
        say("the answers are kept" if trial.stored else "nothing is kept; --keep puts the answers into the cache")


def _print_caption(number: int, caption: TriedCaption) -> None:
    say(f"\n{number}. {caption.caption}")
    if caption.left_out:
        say(f"not asked, because ingest would leave it out: {caption.left_out}")
    for attempt in caption.attempts:
        again = f", attempt {attempt.attempt + 1}" if attempt.attempt else ""
        source = "" if attempt.step == 1 else f' of "{attempt.input}"'
        say(f"step {attempt.step}{source}{again}{', cached' if attempt.cached else ''}")
        if rows := _rows(attempt):
            print_table("", ["answer", "parsed", "filter result"], rows)
        if attempt.reason and not attempt.candidates:
            say(f"{attempt.reason}: {attempt.detail}")
    for paraphrase in caption.paraphrases:
        second = paraphrase.paraphrase_2 or "nothing, so the row is left out"
        say(f"=> {paraphrase.paraphrase_1}\n=> {second}")
    if caption.attempts and not caption.paraphrases:
        say("=> nothing, so the row is left out")


def _rows(attempt: Attempt) -> list[dict[str, str | None]]:
    candidates = attempt.candidates
    filter_results = {candidate.answer: _verdict(candidate, attempt.chosen) for candidate in candidates}
    answers = [(answer.raw, answer.parsed) for answer in attempt.answers]
    answers += [("(words swapped)", candidate.answer) for candidate in candidates if candidate.words_swapped]
    return [
        {"answer": raw, "parsed": "as it is" if text == raw else text, "filter result": filter_results.get(text)}
        for raw, text in answers
    ]


def _verdict(candidate: TriedCandidate, chosen: list[str]) -> str:
    results = candidate.results
    lines = [f"{reason}: {detail}" for reason, detail in results.items() if detail is not None]
    passed = len(results) - len(lines)
    if candidate.accepted:
        lines = ["CHOSEN" if candidate.answer in chosen else "accepted"]
    similarity = candidate.similarity
    with_figure = "" if similarity is None else f", similarity {similarity:.2f}"
    return "\n".join([*lines, f"passes {passed} of {len(results)} filters{with_figure}"])


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
