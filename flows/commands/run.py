"""`paraclip run`, `plan`, `promote` and `evaluate`: what a configuration makes, costs and brings."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

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
    human_seconds,
    leave_in_order,
    print_json,
    print_table,
    quoted,
    say,
    settings_from,
)
from paraclip.flows.names import TAG
from paraclip.flows.own_server import check_server, prepare_prefect, show_own_logs
from paraclip.storage.files import atomic_folder
from paraclip.storage.roots import open_store
from paraclip.tasks.channels import check_channel
from paraclip.tasks.comparison import compare_and_write, named_models, pairs, with_images
from paraclip.tasks.promotion import decide
from paraclip.tasks.results import OVER_CONTROL, comparison_rows, gather_result
from paraclip.tasks.run.drive import finished
from paraclip.tasks.run.run import Run
from paraclip.tasks.run.status import shown_progress
from paraclip_core.captions.counts import listed_reasons
from paraclip_core.errors import ConfigError
from paraclip_core.evaluation.benchmarks import arrow_of
from paraclip_core.evaluation.prepare import parse_benchmark
from paraclip_core.paths import expand
from paraclip_core.report.counts import shares_of_asked
from paraclip_core.text_safety import printable

NOTHING_TO_DO = 3
HELD = 4
GateOption = Annotated[bool, typer.Option("--gate", help="End with code 4 if the verdict is `hold`.")]


def run(
    config: ConfigOption = None,
    set_: SetOption = None,
    root: RunRootOption = None,
    device: RunDeviceOption = None,
    as_json: JsonOption = False,
    gate: GateOption = False,
    require_work: Annotated[
        bool, typer.Option("--require-work", help="End with code 3 if every stage was finished.")
    ] = False,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="STAGE", help="Start at this stage; all before it must be finished."),
    ] = None,
) -> None:
    """Run every stage that is not finished, and compare the base with the tuned model.

    With `--from STAGE`, nothing before that stage is made or paid for: if something there is not finished, because a
    caption or an option changed since, nothing runs at all.
    """
    wanted = Run(settings_from(config, set_, root, device))
    result = finished(wanted, start)
    outcome = _in_flow(wanted) if result is None else result.as_json()
    if as_json:
        print_json(outcome)
    else:
        _print_outcome(outcome)
    if require_work and not any(row["state"] != "cached" for row in outcome["stages"]):
        raise typer.Exit(NOTHING_TO_DO)
    if gate and outcome["verdict"] != "promote":
        raise typer.Exit(HELD)


def demo(
    set_: SetOption = None, root: RunRootOption = None, device: RunDeviceOption = None, as_json: JsonOption = False
) -> None:
    """Render captioned scenes, paraphrase, tune and compare: minutes on two cores, without a GPU.

    The scenes are written once, to `demo-data` under the root; the rest is `run -c demo --set data.root=THAT_FOLDER`.
    """
    config = Path("demo")
    folder = open_store(settings_from(config, set_, root, device).run.root).root.absolute() / "demo-data"
    if not folder.exists():
        # Drawing takes a quarter of a second to import.
        from paraclip_core.demo.render import write_scenes

        with atomic_folder(folder) as draft:
            write_scenes(draft)
    run(config, [f"data.root={quoted(str(folder))}", *(set_ or ())], root, device, as_json)


def _in_flow(run: Run) -> dict[str, Any]:
    prepare_prefect(run.store.root)
    # Prefect takes seconds to import, and reads its environment when it is.
    check_server()
    from prefect import tags

    from paraclip.flows.pipeline import pipeline_of

    show_own_logs()
    # The stage's process and Prefect's temporary server.
    leave_in_order()
    with tags(TAG):
        return pipeline_of(run)


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


def print_comparison(summary: Mapping[str, Any], title: str = "") -> None:
    """Print the table base | tuned | delta | interval, and the verdict."""

    def figure(value: float | None, form: str = ".2f") -> str:
        return "" if value is None else format(value, form)

    def interval(low: float | None, high: float | None) -> str:
        return "" if low is None else f"[{low:+.2f}, {high:+.2f}]"

    rows = []
    for row in comparison_rows(summary):
        over = [row.get(name) for name in OVER_CONTROL]
        shown = {
            "benchmark": row["benchmark"],
            "metric": f"{row['metric']} {arrow_of(row['metric'])}".rstrip(),
            "base": figure(row["base"]),
            "tuned": figure(row["tuned"]),
            "delta": figure(row["delta"], "+.2f"),
            "interval": interval(row["low"], row["high"]),
            "over control": f"{figure(over[0], '+.2f')} {interval(*over[1:])}".strip(),
        }
        rows.append(shown)
    control = ["over control"] if "over_control" in summary else []
    print_table(title, ["benchmark", "metric", "base", "tuned", "delta", "interval", *control], rows)
    say(f"verdict: {summary['verdict']} ({summary['reason']})")
    if churn := summary.get("churn"):
        shares = (f"{name.replace('_', ' ')} {churn[name]:.1f} %" for name in churn if name != "queries")
        say(f"for the same query: {', '.join(shares)} ({churn['queries']:,} queries)")
    for note in summary.get("notes", ()):
        say(f"note: {note}")


def promote(
    config: ConfigOption = None,
    set_: SetOption = None,
    root: RunRootOption = None,
    device: RunDeviceOption = None,
    channel: Annotated[str, typer.Option(help="The channel to move.")] = "production",
    force: Annotated[
        bool, typer.Option("--force", help="Move it whatever the gate says, even from another run's model.")
    ] = False,
    gate: GateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Move a channel to a finished run's model, if it beats its base and, by a step, the channel's model.

    A channel that serves another run's model moves only with `--force`, and then belongs to this run.
    """
    settings = settings_from(config, set_, root, device)
    run = Run(settings)
    check_channel(settings.name, channel, run.store, force)
    artifacts = run.artifacts()
    if missing := [name for name in run.stages if name not in artifacts]:
        raise ConfigError(
            f"the run {settings.name!r} is not finished ({', '.join(missing)}); "
            "call `paraclip run` with the same settings first"
        )
    with shown_progress("evaluate champion") as progress:
        result = gather_result(run, artifacts)
        decision = decide(run, channel, result, progress, force)
    if as_json:
        print_json(decision)
    else:
        if decision["against_champion"]:
            columns = ["benchmark", "metric", "champion", "challenger", "delta", "low", "high"]
            print_table("", columns, decision["against_champion"])
        say(f"{channel}: {decision['reason']}")
    serves = decision["before"] == decision["after"] and result.verdict == "promote"
    if gate and not decision["moved"] and not serves:
        raise typer.Exit(HELD)


def evaluate(
    benchmark: Annotated[list[str], typer.Option(help="NAME=PATH or LABEL:KIND=PATH; may be repeated.")],
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            "-m",
            help=f"NAME=MODEL, twice or more; the first is the base. {MODEL} A file of "
            "`paraclip expand` is its model with expanded queries. Results of two that are named base and tuned "
            "are in the folder itself, those of others in a folder of their name.",
        ),
    ],
    images: Annotated[
        list[str] | None,
        typer.Option(help="Folder, tar or Parquet with the benchmarks' images; NAME=PATH for one; may be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; default: a new one under the root.")] = None,
    split: Annotated[str | None, typer.Option(help="Split to use from files with several.")] = None,
    device: DeviceOption = "auto",
    root: RootOption = DEFAULT_ROOT,
    report: Annotated[bool, typer.Option("--report", help="Write a page, report.html, next to the results.")] = False,
    gate: GateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare models with the first of them on benchmarks in their published formats, outside any run."""
    models = named_models(model)
    benchmarks = [parse_benchmark(text) for text in benchmark]
    for chosen in benchmarks:
        if chosen.path and not expand(chosen.path).exists():
            raise ConfigError(f"--benchmark {chosen.name}: {chosen.path} does not exist")
    command = shlex.join(["paraclip", *sys.argv[1:]])
    benchmarks = with_images(benchmarks, images or ())
    with shown_progress("evaluate", lambda line: typer.echo(printable(line), err=True)) as progress:
        facts: dict[str, Any] = {"split": split, "device": device, "report": report, "command": command}
        folder, summary = compare_and_write(open_store(root), models, benchmarks, out, **facts, progress=progress)
    path = folder / "summary.json"
    comparisons = pairs(summary)
    if as_json:
        print_json({**summary, "summary_path": str(path)})
    else:
        for name, pair in comparisons.items():
            print_comparison(pair, f"{name} against {next(iter(models))}")
            if report:
                page = folder / name if "comparisons" in summary else folder
                say(f"report: {page / 'report.html'}")
        say(f"summary: {path}")
    if gate and any(comparison["verdict"] != "promote" for comparison in comparisons.values()):
        raise typer.Exit(HELD)
