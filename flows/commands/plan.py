"""`paraclip plan`: what a run would do, why, and what it would cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from paraclip.flows.commands.common import (
    ConfigOption,
    JsonOption,
    RunDeviceOption,
    RunRootOption,
    SetOption,
    human_seconds,
    print_json,
    print_table,
    say,
    settings_from,
)
from paraclip.tasks.plan import StagePlan, plan_run
from paraclip.tasks.run.run import Run

SHOWN = 4
"""Number of reasons in the table; all of them are in the JSON."""


def plan(
    config: ConfigOption = None,
    set_: SetOption = None,
    root: RunRootOption = None,
    device: RunDeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show for each stage: cached, resumable or to run, why, and what it would cost. Nothing runs."""
    settings = settings_from(config, set_, root, device)
    with Console(stderr=True).status("counting captions and answers"):
        planned = plan_run(Run(settings))
    total = _total(planned.stages)
    if as_json:
        stages = [asdict(stage) for stage in planned.stages]
        print_json({"notes": planned.notes, "root": settings.run.root, "stages": stages, "total": total})
        return
    rows = [_row(stage, "spend" in total) for stage in planned.stages]
    print_table("", list(rows[0]), rows)
    seconds = ("" if total["complete"] else "at least ") + human_seconds(total["seconds"])
    time = seconds if total["complete"] or total["seconds"] else "no time is known yet"
    spend = f", about {total['spend']:.4g} to spend" if "spend" in total else ""
    say(f"total: {time}, {total['requests']} requests, {total['tokens']} tokens{spend}")
    for note in planned.notes:
        say(note)


def _total(stages: Sequence[StagePlan]) -> dict[str, Any]:
    total: dict[str, Any] = {
        name: sum(getattr(stage, name) or 0 for stage in stages) for name in ("requests", "tokens", "seconds")
    }
    # A total with an unknown part is a lower bound.
    total["complete"] = all(stage.seconds is not None for stage in stages)
    prices = [stage.spend for stage in stages if stage.spend is not None]
    if prices:
        total["spend"] = round(sum(prices), 4)
    return total


def _row(stage: StagePlan, priced: bool) -> dict[str, Any]:
    why = stage.why
    return {
        "stage": stage.stage,
        "state": stage.state,
        "why": "\n".join(why if len(why) <= SHOWN + 1 else [*why[:SHOWN], f"and {len(why) - SHOWN} more, see --json"]),
        "rows": stage.rows,
        "requests": stage.requests,
        "tokens": stage.tokens,
        **({"spend": stage.spend} if priced else {}),
        "time": human_seconds(stage.seconds),
        "estimated from": stage.note,
    }
