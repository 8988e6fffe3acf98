"""`paraclip evaluate`: any models on any benchmarks, outside any run."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from paraclip.flows.commands.common import DEFAULT_ROOT, JsonOption, RootOption, print_json, print_table, printable, say
from paraclip.flows.commands.models import MODEL, DeviceOption
from paraclip.flows.commands.run import HELD, GateOption, print_comparison
from paraclip_core.errors import ConfigError
from paraclip_core.paths import user_path


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
    from paraclip.storage.roots import open_store
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
