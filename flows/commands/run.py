"""`paraclip run`: the whole DAG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from flows.commands.again import ReasonOption, WhereOption, asking_again, how_to_keep
from flows.commands.common import (
    ConfigOption,
    JsonOption,
    SetOption,
    human_seconds,
    leave_in_order,
    print_json,
    print_table,
    say,
    settings_from,
)
from paraclip_core.config import Settings
from paraclip_core.report.data import shares_of_asked

__all__ = ["HELD", "NOTHING_TO_DO", "print_comparison", "run"]

NOTHING_TO_DO = 3
HELD = 4

GateOption = Annotated[bool, typer.Option("--gate", help="End with code 4 if the verdict is `hold`.")]
WorkOption = Annotated[bool, typer.Option("--require-work", help="End with code 3 if every stage was finished.")]


def run(
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
    gate: GateOption = False,
    require_work: WorkOption = False,
    regenerate: ReasonOption = None,
    regenerate_where: WhereOption = None,
) -> None:
    """Run every stage that is not finished, and compare base and tuned model."""
    settings = asking_again(settings_from(config, set_), regenerate, regenerate_where)
    outcome = _finished(settings) or _carry_out(settings)
    if as_json:
        print_json(outcome)
    else:
        _print_outcome(outcome)
        if regenerate or regenerate_where:
            say(how_to_keep(settings))
    if require_work and not any(row["state"] != "cached" for row in outcome["stages"]):
        raise typer.Exit(NOTHING_TO_DO)
    if gate and outcome["verdict"] != "promote":
        raise typer.Exit(HELD)


def _finished(settings: Settings) -> dict[str, Any] | None:
    """The outcome if every stage is finished, without starting Prefect."""
    from storage.roots import open_store
    from tasks.dag import resolve
    from tasks.results import check_run_name, record_result, stage_row
    from tasks.run import finished_artifacts

    store = open_store(settings.run.root)
    check_run_name(settings.name, store)
    nodes = resolve(settings, store)
    artifacts = finished_artifacts(nodes, store)
    if len(artifacts) < len(nodes):
        return None
    rows = [stage_row(artifact, True, 0.0) for artifact in artifacts.values()]
    return record_result(settings, store, rows, artifacts).as_json()


def _carry_out(settings: Settings) -> dict[str, Any]:
    from flows.logs import show_own_logs
    from flows.quiet import check_server, prepare_prefect
    from storage.roots import open_store

    prepare_prefect(open_store(settings.run.root).root)
    # Prefect takes seconds to import, so only now.
    check_server()
    from flows.pipeline import pipeline

    show_own_logs()
    # The stage's process and Prefect's temporary server.
    leave_in_order()
    return pipeline(settings)


def _print_outcome(outcome: Mapping[str, Any]) -> None:
    stages = outcome["stages"]
    if outcome["warning"]:
        say(f"warning: {outcome['warning']}")
    if all(row["state"] == "cached" for row in stages):
        typer.echo("Nothing to do, every stage is finished:")
    rows = [{**row, "took": human_seconds(row["made_in"]), "artifact": row["path"]} for row in stages]
    print_table("", ["stage", "state", "took", "rejected", "artifact"], rows)
    for row in stages:
        if reasons := row.get("reasons"):
            typer.echo(f"{row['stage']} rejected {', '.join(f'{reason} {count}' for reason, count in reasons.items())}")
    if any(row["rejected"] for row in stages):
        typer.echo("Rejected rows and their reasons are in the folder `rejects` of each artifact and in the report.")
    if totals := shares_of_asked(outcome["rows"]):
        print_table("", list(totals), [totals])
    if outcome["summary"]:
        print_comparison(outcome["summary"])
    for label, key in (("report", "report"), ("summary", "summary_path")):
        if outcome[key]:
            say(f"{label}: {outcome[key]}")


def print_comparison(summary: Mapping[str, Any]) -> None:
    """The table base | tuned | delta | interval, and the verdict."""
    from tasks.results import comparison_rows, why

    rows = [
        {
            "benchmark": row["benchmark"],
            "metric": row["metric"],
            "base": _figure(row["base"]),
            "tuned": _figure(row["tuned"]),
            "delta": _figure(row["delta"], "+.2f"),
            "interval": "" if row["low"] is None else f"[{row['low']:+.2f}, {row['high']:+.2f}]",
        }
        for row in comparison_rows(summary)
    ]
    print_table("", ["benchmark", "metric", "base", "tuned", "delta", "interval"], rows)
    say(f"verdict: {summary['verdict']} ({why(summary)})")
    # Summaries of earlier releases have none.
    for note in summary.get("notes", ()):
        say(f"note: {note}")


def _figure(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else format(value, form)
