"""`paraclip calibrate`: how fast this engine answers here."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.common import ConfigOption, JsonOption, SetOption, print_json, print_table, say, settings_from

if TYPE_CHECKING:
    from tasks.rates import Measured

__all__ = ["calibrate"]

CaptionsOption = Annotated[int, typer.Option("--captions", min=16, max=100_000, help="Captions to ask for, at most.")]


def calibrate(
    config: ConfigOption = None, set_: SetOption = None, captions: CaptionsOption = 64, as_json: JsonOption = False
) -> None:
    """Measure the engine's rate on some of the run's captions; their answers are kept, and `plan` uses the rate."""
    from storage.roots import open_store
    from tasks.calibration import calibrate as measure_rate
    from tasks.calibration import captions_needed, in_flight
    from tasks.display import shown_progress

    settings = settings_from(config, set_)
    with shown_progress("calibrate") as progress:
        measured = measure_rate(settings, open_store(settings.run.root), captions, progress)
    if as_json:
        print_json(asdict(measured))
        return
    print_table("", ["measure", "value"], [{"measure": name, "value": value} for name, value in _told(measured)])
    most = in_flight(settings.paraphrase)
    if measured.requests < most:
        say(
            f"A run has up to {most} requests in flight, more than the {measured.requests} measured here, which may be "
            f"faster: --captions {captions_needed(settings.paraphrase)} measures that."
        )
    say("The answers are in the generation cache; `paraclip plan` uses the rate from now on.")


def _told(measured: Measured) -> list[tuple[str, Any]]:
    spread = f" ({measured.spread})" if measured.spread else ""
    # As text, so that the column is not set as numbers where the others are words.
    return [
        ("engine", measured.engine),
        ("model", measured.model),
        ("requests", f"{measured.requests} in {measured.rounds} rounds" if measured.rounds > 1 else measured.requests),
        ("requests/s", f"{measured.requests_per_second:.4g}{spread}"),
        ("prompt tokens/s", measured.prompt_tokens_per_second),
        ("generated tokens/s", measured.tokens_per_second),
        ("prompt tokens a request", measured.prompt_tokens),
        ("generated tokens a request", measured.completion_tokens),
        ("start, seconds", measured.start_seconds),
    ]
