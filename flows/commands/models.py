"""`paraclip evaluate`, `search` and `export`: what to do with models that are there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.common import JsonOption, RootOption, print_json, print_table
from flows.commands.run import HELD, GateOption, print_comparison

__all__ = ["evaluate", "export", "search"]

DEFAULT_ROOT = Path("runs")
MODEL = (
    "A channel, the start of a fingerprint, a release folder, or an open_clip name such as ViT-B-32:laion2b_s34b_b79k."
)

ModelOption = Annotated[str, typer.Option("--model", "-m", help="A channel, the start of a fingerprint, or a folder.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def evaluate(
    base: Annotated[str, typer.Option(help=MODEL)],
    tuned: Annotated[str, typer.Option(help=MODEL)],
    benchmark: Annotated[list[str], typer.Option(help="NAME=PATH or LABEL:KIND=PATH; may be repeated.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the results; default: under the root.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of files with several.")] = None,
    device: DeviceOption = "auto",
    root: RootOption = DEFAULT_ROOT,
    gate: GateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare two models on benchmarks in their published formats, outside any run."""
    from paraclip_core.evaluation.evaluate import evaluate_models
    from paraclip_core.evaluation.tasks import parse_benchmark
    from storage.artifacts import ArtifactStore
    from tasks.lookup import find_release
    from tasks.stages.evaluate import write_evaluation

    store = ArtifactStore(root)
    benchmarks = [parse_benchmark(text) for text in benchmark]
    models = {"base": str(find_release(base, store)), "tuned": str(find_release(tuned, store))}
    evaluation = evaluate_models(models["base"], models["tuned"], benchmarks, split=split, device=device)
    folder = (out or store.root / "results" / "evaluate").absolute()
    summary = write_evaluation(folder, evaluation, models, models)
    path = folder / "summary.json"
    if as_json:
        print_json({**summary, "summary_path": str(path)})
    else:
        print_comparison(summary)
        typer.echo(f"summary: {path}")
    if gate and summary["verdict"] != "promote":
        raise typer.Exit(HELD)


def search(
    query: Annotated[str, typer.Argument(help="What to look for, in words.")],
    model: ModelOption,
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="How many images.")] = 10,
    device: DeviceOption = "cpu",
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Rank a run's images for a query, the base model's order beside the tuned one's."""
    from storage.artifacts import ArtifactStore
    from tasks.lookup import find_model
    from tasks.searching import search as find_images

    hits = find_images(find_model(model, ArtifactStore(root)), query, count, device)
    if as_json:
        print_json({"query": query, **{name: [asdict(hit) for hit in found] for name, found in hits.items()}})
        return
    rows: list[dict[str, Any]] = [
        {"rank": base.rank, "base": f"{base.image_id}: {base.caption or ''}", " ": base.score}
        | {"tuned": f"{tuned.image_id}: {tuned.caption or ''}", "  ": tuned.score}
        for base, tuned in zip(hits["base"], hits["tuned"], strict=True)
    ]
    print_table("", ["rank", "base", " ", "tuned", "  "], rows)


def export(
    model: Annotated[str, typer.Argument(help="A channel, the start of a fingerprint, or a folder.")],
    folder: Annotated[Path, typer.Argument(help="New folder for the open_clip release.")],
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Copy a model's release folder, which stock open_clip loads as local-dir:FOLDER."""
    from storage.artifacts import ArtifactStore
    from tasks.exporting import export_release
    from tasks.lookup import find_release

    files = export_release(find_release(model, ArtifactStore(root)), folder)
    if as_json:
        print_json({"folder": str(folder.absolute()), "files": files})
    else:
        typer.echo(f"{len(files)} files in {folder}. Load it with")
        typer.echo(f'  open_clip.create_model_and_transforms("local-dir:{folder.absolute()}")')
