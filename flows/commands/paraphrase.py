"""`paraclip paraphrase`: both steps on a few captions, with each gate's verdict."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.common import (
    ConfigOption,
    JsonOption,
    SetOption,
    print_json,
    print_table,
    printable,
    say,
    settings_from,
)
from paraclip_core.errors import ConfigError

if TYPE_CHECKING:
    from tasks.trial import Attempt, CaptionTrial, Trial

__all__ = ["paraphrase"]

MOST_CAPTIONS = 1000
LONGEST_LINE = 100_000


def paraphrase(
    captions: Annotated[list[str] | None, typer.Argument(metavar="CAPTION...", help="Captions to try.")] = None,
    file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Text file with more of them, one a line.")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Put the answers into the root's generation cache, where runs find them.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Try both steps on a few captions: raw answers, what was parsed from them, each gate's verdict, the choice.

    Answers that the root's generation cache holds are used. Nothing is kept without --keep, and no stage runs.
    """
    from storage.roots import open_store
    from tasks.trial import try_captions

    settings = settings_from(config, set_)
    texts = [*(captions or ()), *(_lines(file) if file else ())]
    if not texts:
        raise ConfigError('no captions to try; give some, for example `paraclip paraphrase "a kid on a swing"`')
    if len(texts) > MOST_CAPTIONS:
        raise ConfigError(f"more than {MOST_CAPTIONS} captions; try fewer here, or let `paraclip run` paraphrase all")
    trial = try_captions(settings, open_store(settings.run.root), list(dict.fromkeys(texts)), keep, _hint)
    if as_json:
        print_json(trial.as_json())
    else:
        _print(trial)


def _lines(path: Path) -> Iterator[str]:
    count = 0
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        while count <= MOST_CAPTIONS and (line := file.readline(LONGEST_LINE)):
            if line.strip():
                count += 1
                yield line.rstrip("\r\n")


def _hint(text: str) -> None:
    typer.echo(printable(text), err=True)


def _print(trial: Trial) -> None:
    say(f"engine {trial.engine}, model {trial.model}")
    say(f"gates of preset {trial.preset}: {', '.join(trial.gates)}")
    for number, caption in enumerate(trial.captions, 1):
        _print_caption(number, caption)
    complete = sum(any(rewrite.paraphrase_2 for rewrite in caption.rewrites) for caption in trial.captions)
    spend = "" if trial.spend is None else f", which cost {trial.spend:.4g}"
    say(f"\n{complete} of {len(trial.captions)} captions have both rewrites")
    say(
        f"{trial.asked} requests asked ({trial.prompt_tokens} prompt tokens, {trial.completion_tokens} answered"
        f"{spend}), {trial.cached} cached"
    )
    if trial.asked:
        say("the answers are kept" if trial.stored else "nothing is kept; --keep puts the answers into the cache")


def _print_caption(number: int, caption: CaptionTrial) -> None:
    say(f"\n{number}. {caption.caption}")
    if caption.left_out:
        say(f"not asked, for ingest would leave it out: {caption.left_out}")
    for attempt in caption.attempts:
        _print_attempt(attempt)
    for rewrite in caption.rewrites:
        second = "nothing, so the row is left out" if rewrite.paraphrase_2 is None else rewrite.paraphrase_2
        say(f"=> {rewrite.paraphrase_1}\n=> {second}")
    if caption.attempts and not caption.rewrites:
        say("=> nothing, so the row is left out")


def _print_attempt(attempt: Attempt) -> None:
    again = f", attempt {attempt.attempt + 1}" if attempt.attempt else ""
    cached = ", cached" if attempt.cached else ""
    source = "" if attempt.step == 1 else f' of "{attempt.input}"'
    say(f"step {attempt.step}{source}{again}{cached}")
    rows = _rows(attempt)
    if rows:
        print_table("", ["answer", "parsed", "verdict"], rows)
    if attempt.reason and not attempt.candidates:
        say(f"{attempt.reason}: {attempt.detail}")


def _rows(attempt: Attempt) -> list[dict[str, Any]]:
    plain = attempt.as_json()
    verdicts = {one["answer"]: _verdict(one, attempt) for one in plain["candidates"]}
    rows = [{"answer": one["raw"], "parsed": one["parsed"]} for one in plain["answers"]]
    rows += [
        {"answer": "(words swapped)", "parsed": one["answer"]} for one in plain["candidates"] if one["words_swapped"]
    ]
    for row in rows:
        row["verdict"] = verdicts.get(row["parsed"])
        row["parsed"] = "as it is" if row["parsed"] == row["answer"] else row["parsed"]
    return rows


def _verdict(candidate: dict[str, Any], attempt: Attempt) -> str:
    results = candidate["results"]
    lines = [f"{reason}: {detail}" for reason, detail in results.items() if detail is not None]
    passed = sum(detail is None for detail in results.values())
    if candidate["accepted"]:
        lines = ["CHOSEN" if candidate["answer"] in attempt.chosen else "accepted"]
    similarity = candidate["similarity"]
    with_figure = "" if similarity is None else f", similarity {similarity:.2f}"
    return "\n".join([*lines, f"passes {passed} of {len(results)} gates{with_figure}"])
