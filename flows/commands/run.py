"""`paraclip run`, `plan`, `promote` and `evaluate`: what a configuration makes, costs and brings."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from paraclip.flows.commands.common import (
    DEFAULT_ROOT,
    MODEL,
    ConfigOption,
    DeviceOption,
    JsonOption,
    RootOption,
    RunDeviceOption,
    RunRootOption,
    SetOption,
    human_bytes,
    human_seconds,
    leave_in_order,
    print_json,
    print_table,
    printable,
    same_options,
    say,
    say_next,
    settings_from,
)
from paraclip.storage.roots import open_store
from paraclip_core.captions.clean import listed_reasons
from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError
from paraclip_core.paths import user_path
from paraclip_core.report.data import shares_of_asked

if TYPE_CHECKING:
    from paraclip.tasks.plan import StagePlan

NOTHING_TO_DO = 3
HELD = 4
GateOption = Annotated[bool, typer.Option("--gate", help="End with code 4 if the verdict is `hold`.")]
WorkOption = Annotated[bool, typer.Option("--require-work", help="End with code 3 if every stage was finished.")]
FromOption = Annotated[
    str | None,
    typer.Option("--from", metavar="STAGE", help="Start at this stage: those before it in `plan` must be finished."),
]
SHOWN = 4
"""Reasons in the table; all of them are in the JSON."""
ChannelOption = Annotated[str, typer.Option(help="The channel to move.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Move it whatever the gate says.")]


def run(
    config: ConfigOption = None,
    set_: SetOption = None,
    root: RunRootOption = None,
    device: RunDeviceOption = None,
    as_json: JsonOption = False,
    gate: GateOption = False,
    require_work: WorkOption = False,
    start: FromOption = None,
) -> None:
    """Run every stage that is not finished, and compare base and tuned model.

    With `--from STAGE` nothing before that stage is made or paid for: where something there is not finished, because a
    caption or an option changed since, nothing runs at all.
    """
    settings = settings_from(config, set_, root, device)
    outcome = _finished(settings, start) or _carry_out(settings)
    if as_json:
        print_json(outcome)
    else:
        _print_outcome(outcome)
        if outcome["verdict"] == "promote":
            say_next("promote", *same_options(config, set_, root, device))
        elif outcome["verdict"]:
            say_next("ui", "--model", settings.name, "--root", settings.run.root)
    if require_work and not any(row["state"] != "cached" for row in outcome["stages"]):
        raise typer.Exit(NOTHING_TO_DO)
    if gate and outcome["verdict"] != "promote":
        raise typer.Exit(HELD)


def demo(
    set_: SetOption = None, root: RunRootOption = None, device: RunDeviceOption = None, as_json: JsonOption = False
) -> None:
    """Render captioned scenes, paraphrase, tune and compare: `run -c demo`, minutes on two cores, without a GPU."""
    run(Path("demo"), set_, root, device, as_json)


def _finished(settings: Settings, start: str | None) -> dict[str, Any] | None:
    """The outcome if every stage is finished, without starting Prefect."""
    from paraclip.tasks.channels import check_run_name, record_result
    from paraclip.tasks.results import stage_row
    from paraclip.tasks.run.run import Run

    run = Run(settings)
    check_run_name(settings.name, run.store)
    artifacts = run.artifacts()
    if start is not None:
        before = list(run.stages)[: list(run.stages).index(run.node(start).name)]
        if missing := [name for name in before if name not in artifacts]:
            raise ConfigError(
                f"--from {start}: {', '.join(missing)} must be finished and {'are' if missing[1:] else 'is'} not; "
                f"`paraclip plan` with the same options says why. Without --from everything that is missing is made"
            )
    if len(artifacts) < len(run.stages):
        return None
    rows = [stage_row(artifact, True, 0.0) for artifact in artifacts.values()]
    return record_result(run, rows, artifacts).as_json()


def _carry_out(settings: Settings) -> dict[str, Any]:
    from paraclip.flows.local_stack import check_server, prepare_prefect, show_own_logs

    prepare_prefect(open_store(settings.run.root).root)
    # Prefect takes seconds to import, so only now.
    check_server()
    from prefect import tags

    from paraclip.flows.local_stack import TAG
    from paraclip.flows.pipeline import pipeline

    show_own_logs()
    # The stage's process and Prefect's temporary server.
    leave_in_order()
    with tags(TAG):
        return cast(dict[str, Any], pipeline(settings=settings))


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
            typer.echo(f"{row['stage']} rejected {listed_reasons(reasons)}")
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
    from paraclip.tasks.results import comparison_rows, why
    from paraclip_core.evaluation.benchmarks import arrow_of

    rows = [
        {
            "benchmark": row["benchmark"],
            "metric": f"{row['metric']} {arrow_of(row['metric'])}".rstrip(),
            "base": _figure(row["base"]),
            "tuned": _figure(row["tuned"]),
            "delta": _figure(row["delta"], "+.2f"),
            "interval": "" if row["low"] is None else f"[{row['low']:+.2f}, {row['high']:+.2f}]",
            "over control": _over_control(row),
        }
        for row in comparison_rows(summary)
    ]
    control = ["over control"] if "over_control" in summary else []
    print_table("", ["benchmark", "metric", "base", "tuned", "delta", "interval", *control], rows)
    say(f"verdict: {summary['verdict']} ({why(summary)})")
    for note in summary.get("notes", ()):
        say(f"note: {note}")


def _over_control(row: Mapping[str, Any]) -> str:
    if row.get("over_control") is None:
        return ""
    return f"{row['over_control']:+.2f} [{row['over_control_low']:+.2f}, {row['over_control_high']:+.2f}]"


def _figure(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else format(value, form)


def plan(
    config: ConfigOption = None,
    set_: SetOption = None,
    root: RunRootOption = None,
    device: RunDeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """For each stage: cached, resumable or to run, why, and what it would cost. Nothing runs."""
    from paraclip.tasks.plan import plan_run
    from paraclip.tasks.run.run import Run

    settings = settings_from(config, set_, root, device)
    with Console(stderr=True).status("counting captions and answers"):
        planned = plan_run(Run(settings))
    total = _total(planned.stages)
    if as_json:
        stages = [stage.as_json() for stage in planned.stages]
        print_json({"notes": planned.notes, "root": settings.run.root, "stages": stages, "total": total})
        return
    rows = [_row(stage, "spend" in total) for stage in planned.stages]
    print_table("", list(rows[0]), rows)
    bound = "" if total["complete"] else "at least "
    say(
        f"total: {bound}{human_seconds(total['seconds'])}, {human_bytes(total['bytes'])} to write, "
        f"{total['requests']} requests, {total['tokens']} tokens"
        + (f", about {total['spend']:.4g} to spend" if "spend" in total else "")
    )
    for note in planned.notes:
        say(note)
    say_next("run", *same_options(config, set_, root, device))


def _total(stages: Sequence[StagePlan]) -> dict[str, Any]:
    total: dict[str, Any] = {
        name: sum(getattr(stage, name) or 0 for stage in stages) for name in ("requests", "tokens", "seconds")
    }
    total["bytes"] = sum(stage.bytes or 0 for stage in stages if stage.state != "cached")
    # A total of which a part is unknown is a lower bound.
    total["complete"] = all(stage.seconds is not None for stage in stages)
    prices = [stage.spend for stage in stages if stage.spend is not None]
    if prices:
        total["spend"] = round(sum(prices), 4)
    return total


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


def promote(
    config: ConfigOption = None,
    set_: SetOption = None,
    root: RunRootOption = None,
    device: RunDeviceOption = None,
    channel: ChannelOption = "production",
    force: ForceOption = False,
    gate: GateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Move a channel to a finished run's model, if it beats its base and is no worse than the channel's model."""
    from paraclip.tasks.run.status import shown_progress

    settings = settings_from(config, set_, root, device)
    with shown_progress("evaluate champion") as progress:
        decision = _decide(settings, channel, force, progress)
    if as_json:
        print_json(decision)
    else:
        if decision["against_champion"]:
            columns = ["benchmark", "metric", "champion", "challenger", "delta", "low", "high"]
            print_table("", columns, decision["against_champion"])
        say(f"{channel}: {decision['reason']}")
        if decision["moved"]:
            say_next("export", channel, "FOLDER", "--root", settings.run.root)
    if gate and not decision["moved"]:
        raise typer.Exit(HELD)


def _decide(settings: Settings, channel: str, force: bool, progress: Any) -> dict[str, Any]:
    from paraclip.tasks.channels import check_channel, decide
    from paraclip.tasks.results import gather_result, stage_row
    from paraclip.tasks.run.run import Run

    run = Run(settings)
    check_channel(settings.name, channel, run.store)
    artifacts = run.artifacts()
    missing = [name for name in run.stages if name not in artifacts]
    if missing:
        raise ConfigError(
            f"the run {settings.name!r} is not finished ({', '.join(missing)}); "
            "call `paraclip run` with the same settings first"
        )
    rows = [stage_row(artifact, True, 0.0) for artifact in artifacts.values()]
    return decide(run, channel, gather_result(run, rows, artifacts), progress, force)


def evaluate(
    benchmark: Annotated[
        list[str],
        typer.Option(help="NAME=PATH or LABEL:KIND=PATH, KIND also package.module:NAME of your own; may be repeated."),
    ],
    base: Annotated[str | None, typer.Option(help=MODEL)] = None,
    tuned: Annotated[str | None, typer.Option(help=MODEL)] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="NAME=MODEL, in place of --base and --tuned; the first is the base."),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(help="Folder, tar or Parquet with the benchmarks' images; NAME=PATH for one; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default: one of its own under the root.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of files with several.")] = None,
    device: DeviceOption = "auto",
    root: RootOption = DEFAULT_ROOT,
    report: Annotated[bool, typer.Option("--report", help="Write a page, report.html, beside the results.")] = False,
    gate: GateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare models on benchmarks in their published formats, outside any run: each with the first."""
    from paraclip.tasks.comparison import Request, compare_and_write, table, with_images
    from paraclip.tasks.run.status import shown_progress
    from paraclip_core.evaluation.run import parse_benchmark

    models = _models(base, tuned, model or ())
    benchmarks = [parse_benchmark(text) for text in benchmark]
    for chosen in benchmarks:
        if chosen.path and not user_path(chosen.path).exists():
            raise ConfigError(f"--benchmark {chosen.name}: {chosen.path} does not exist")
    command = shlex.join(["paraclip", *sys.argv[1:]])
    request = Request(models, with_images(benchmarks, images or ()), split, device, report, command)
    with shown_progress("evaluate", lambda line: typer.echo(printable(line), err=True)) as progress:
        folder, summary = compare_and_write(open_store(root), request, out, progress)
    path = folder / "summary.json"
    verdicts = [summary] if request.is_pair else list(summary["comparisons"].values())
    if as_json:
        print_json({**summary, "summary_path": str(path)})
    elif request.is_pair:
        print_comparison(summary)
    else:
        print_table("", *table(summary))
        for name, comparison in summary["comparisons"].items():
            say(f"{name}: {comparison['verdict']} ({comparison['reason']})")
    if not as_json:
        pages = [folder] if request.is_pair else [folder / name for name in summary["comparisons"]]
        for page in pages if report else ():
            say(f"report: {page / 'report.html'}")
        say(f"summary: {path}")
    if gate and any(comparison["verdict"] != "promote" for comparison in verdicts):
        raise typer.Exit(HELD)


def _models(base: str | None, tuned: str | None, models: tuple[str, ...] | list[str]) -> dict[str, str]:
    from paraclip.tasks.comparison import named_models

    if models and (base or tuned):
        raise ConfigError("--model takes the place of --base and --tuned; use one or the other")
    if models:
        return named_models(models)
    if base is None or tuned is None:
        raise ConfigError("name two models, with --base and --tuned, or any number with --model NAME=MODEL")
    return {"base": base, "tuned": tuned}
