"""`paraclip plan`: what a run would do, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from flows.commands.again import ReasonOption, WhereOption, asking_again
from flows.commands.common import (
    ConfigOption,
    JsonOption,
    SetOption,
    human_bytes,
    human_seconds,
    print_json,
    print_table,
    say,
    settings_from,
)

if TYPE_CHECKING:
    from tasks.planning import StagePlan

__all__ = ["plan"]

SHOWN = 4
"""Reasons in the table; all of them are in the JSON."""


def plan(
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
    regenerate: ReasonOption = None,
    regenerate_where: WhereOption = None,
) -> None:
    """For each stage: cached, resumable or to run, why, and what it would cost. Nothing runs."""
    from storage.roots import open_store
    from tasks.dag import resolve
    from tasks.planning import plan_notes, plan_run
    from tasks.preflight import check_before_paying

    settings = asking_again(settings_from(config, set_), regenerate, regenerate_where)
    with Console(stderr=True).status("counting captions and answers"):
        store = open_store(settings.run.root)
        stages = plan_run(settings, store)
        notes = check_before_paying(settings, store, resolve(settings, store))
    totals = {name: sum(getattr(stage, name) or 0 for stage in stages) for name in ("requests", "tokens", "seconds")}
    to_write = sum(stage.bytes or 0 for stage in stages if stage.state != "cached")
    # A total of which a part is unknown is a lower bound.
    complete = all(stage.seconds is not None for stage in stages)
    total: dict[str, Any] = {**totals, "bytes": to_write, "complete": complete}
    prices = [stage.spend for stage in stages if stage.spend is not None]
    if prices:
        total["spend"] = round(sum(prices), 4)
    notes += plan_notes(settings, sum(stage.requests or 0 for stage in stages))
    if as_json:
        print_json(
            {"notes": notes, "root": settings.run.root, "stages": [stage.as_json() for stage in stages], "total": total}
        )
        return
    rows = [_row(stage, bool(prices)) for stage in stages]
    print_table("", list(rows[0]), rows)
    bound = "" if complete else "at least "
    typer.echo(
        f"total: {bound}{human_seconds(totals['seconds'])}, {human_bytes(to_write)} to write, "
        f"{totals['requests']} requests, {totals['tokens']} tokens"
        + (f", about {total['spend']:.4g} to spend" if prices else "")
    )
    for note in notes:
        say(note)


def _row(stage: StagePlan, priced: bool) -> dict[str, Any]:
    return {
        "stage": stage.stage,
        "state": stage.state,
        "why": _some(stage.why),
        "rows": stage.rows,
        "requests": stage.requests,
        "tokens": stage.tokens,
        **({"spend": stage.spend} if priced else {}),
        "time": human_seconds(stage.seconds),
        "disk": human_bytes(stage.bytes),
        "estimated from": "" if stage.state == "cached" else stage.basis,
    }


def _some(why: Sequence[str]) -> str:
    left = len(why) - SHOWN
    return "\n".join([*why[:SHOWN], f"and {left} more, see --json"] if left > 1 else why)
