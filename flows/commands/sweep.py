"""`paraclip sweep`: which options make the engine fastest here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.common import ConfigOption, JsonOption, SetOption, print_json, print_table, say, settings_from

if TYPE_CHECKING:
    from tasks.rates import Measured
    from tasks.sweep import Trial

__all__ = ["sweep"]

TryOption = Annotated[
    list[str] | None,
    typer.Option("--try", help="An option and its values, e.g. paraphrase.chunk=64,256; several are combined."),
]
AgainOption = Annotated[bool, typer.Option("--again", help="Also try combinations that failed before.")]
EachOption = Annotated[
    int | None,
    typer.Option(
        "--captions",
        min=16,
        max=100_000,
        help="Captions for each combination. Default: enough to fill the engine twice.",
    ),
]


def sweep(
    config: ConfigOption = None,
    set_: SetOption = None,
    try_: TryOption = None,
    captions: EachOption = None,
    again: AgainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the engine's rate with several combinations of options that change no answer; the answers are kept."""
    from storage.roots import open_store
    from tasks.display import shown_progress
    from tasks.sweep import DEFAULT_TRIALS, OTHER_TRIALS, combinations, counted, prepare
    from tasks.sweep import sweep as measure_all

    base = settings_from(config, set_)
    tries = try_ or DEFAULT_TRIALS.get(base.paraphrase.engine, OTHER_TRIALS)
    trials = {" ".join(some): settings_from(config, [*(set_ or ()), *some]) for some in combinations(tries)}
    store = open_store(base.run.root)
    plan = prepare(base, trials, store, captions, again, shrink=not try_)
    if not as_json:
        for notice in plan.notices:
            say(notice)
        if plan.trials:
            say(f"to measure: {counted(len(plan.trials))}, {plan.captions} captions each; their answers are kept")
    found: list[Trial] = []
    try:
        for trial in measure_all(base, plan, store, shown_progress):
            found.append(trial)
            if not as_json:
                say(_line(trial))
    finally:
        # What ends a sweep early costs nothing that was measured before.
        _conclude(found, len(plan.trials) + len(plan.failed), as_json)
    if not any(trial.measured for trial in found):
        raise typer.Exit(1)


def _line(trial: Trial) -> str:
    if trial.measured is None:
        return f"{trial.options}: {'failed' if trial.tried else 'left out, it failed before'}: {trial.failure}"
    measured = trial.measured
    rounds = _rounds(measured)
    return (
        f"{trial.options}: {measured.requests_per_second:.4g} requests/s{f' ({rounds})' if rounds else ''}, "
        f"{measured.tokens_per_second:.4g} tokens/s, started in {measured.start_seconds:.4g} s"
    )


def _rounds(measured: Measured) -> str:
    return f"{measured.spread} in {measured.rounds} rounds" if measured.spread else ""


def _conclude(found: Sequence[Trial], planned: int, as_json: bool) -> None:
    ranked = sorted(found, key=lambda trial: -(trial.measured.requests_per_second if trial.measured else 0))
    if as_json:
        print_json([asdict(trial) for trial in ranked])
        return
    if not ranked:
        return
    measured = [(trial.options, trial.measured) for trial in ranked if trial.measured]
    columns = ["options", "requests/s", "rounds", "tokens/s", "start s"] if measured else ["options"]
    columns += [] if len(measured) == len(ranked) else ["failure"]
    print_table("", columns, [_row(trial) for trial in ranked])
    if len(found) < planned:
        say(f"It ended after {len(found)} of {planned} combinations.")
    if len(measured) > 1:
        say(_verdict(measured))
    if measured:
        say("`paraclip calibrate` with the options that you choose lets `paraclip plan` use their rate.")
    if not all(trial.tried for trial in ranked):
        say("What failed before was left out; --again tries it.")


def _row(trial: Trial) -> dict[str, Any]:
    measured = trial.measured
    if measured is None:
        told = trial.failure if trial.tried else f"failed before: {trial.failure}"
        return {"options": trial.options, "failure": told}
    return {
        "options": trial.options,
        "requests/s": measured.requests_per_second,
        "rounds": _rounds(measured),
        "tokens/s": measured.tokens_per_second,
        "start s": measured.start_seconds,
    }


def _verdict(ranked: Sequence[tuple[str, Measured]]) -> str:
    """Which is fastest, as far as the rounds agree about it."""
    (best, first), *others = ranked
    close = [name for name, other in others if other.fastest >= first.slowest]
    if close:
        return f"fastest: {best}, but rounds differ too much to tell it from {', '.join(close)}"
    return f"fastest: {best}"
