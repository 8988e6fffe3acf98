"""`paraclip evaluate`, `search`, `export` and `verify-index`: what to do with models that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows.commands.common import DEFAULT_ROOT, JsonOption, RootOption, print_json, print_table, printable
from flows.commands.run import HELD, GateOption, print_comparison
from paraclip_core.errors import ConfigError
from paraclip_core.paths import user_path

if TYPE_CHECKING:
    from paraclip_core.config import BenchmarkOptions
    from storage.artifacts import ArtifactStore

__all__ = ["evaluate", "export", "search", "verify_index"]

INVALID = 1
LOADED_BY = {
    "open_clip": 'model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{}"); model.eval()',
    "hf": 'transformers.CLIPModel.from_pretrained("{}")',
    "onnx": 'onnxruntime.InferenceSession("{}/text_model.onnx")',
    "sentence-transformers": 'sentence_transformers.SentenceTransformer("{}")',
}
MODEL = (
    "A channel, the start of a fingerprint or STAGE/START, a model folder, an open_clip name such as "
    "ViT-B-32:laion2b_s34b_b79k, or ViT-B-32:FILE with weights in a published format."
)

ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="A channel, the start of a fingerprint or STAGE/START, or an artifact's folder."
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def evaluate(
    base: Annotated[str, typer.Option(help=MODEL)],
    tuned: Annotated[str, typer.Option(help=MODEL)],
    benchmark: Annotated[
        list[str],
        typer.Option(help="NAME=PATH or LABEL:KIND=PATH, KIND also package.module:NAME of your own; may be repeated."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default: one of its own under the root.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of files with several.")] = None,
    device: DeviceOption = "auto",
    root: RootOption = DEFAULT_ROOT,
    gate: GateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare two models on benchmarks in their published formats, outside any run."""
    from paraclip_core.evaluation.run import evaluate_models, parse_benchmark
    from storage.files import storage_error
    from storage.roots import open_store
    from tasks.models import find_release, name_in
    from tasks.stages.evaluate import write_evaluation

    store = open_store(root)
    benchmarks = [parse_benchmark(text) for text in benchmark]
    for chosen in benchmarks:
        if chosen.path and not user_path(chosen.path).exists():
            raise ConfigError(f"--benchmark {chosen.name}: {chosen.path} does not exist")
    releases = {"base": find_release(base, store), "tuned": find_release(tuned, store)}
    models = {which: name_in(store, release) for which, release in releases.items()}
    folder = (out or _results_folder(store, benchmarks, split, releases, models)).absolute()
    try:
        # Before what takes minutes.
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if out is None:
            raise storage_error(error, folder) from error
        raise ConfigError(f"--out: {folder} cannot be made ({error.strerror}); name a folder that can be") from error
    evaluation = evaluate_models(str(releases["base"]), str(releases["tuned"]), benchmarks, split=split, device=device)
    summary = write_evaluation(folder, evaluation, models, models)
    path = folder / "summary.json"
    if as_json:
        print_json({**summary, "summary_path": str(path)})
    else:
        print_comparison(summary)
        typer.echo(f"summary: {path}")
    if gate and summary["verdict"] != "promote":
        raise typer.Exit(HELD)


def _results_folder(
    store: ArtifactStore,
    benchmarks: Sequence[BenchmarkOptions],
    split: str | None,
    releases: Mapping[str, Path | str],
    models: Mapping[str, str],
) -> Path:
    """A folder for each comparison, by what its files hold: none writes over other results than its own."""
    from paraclip_core.clip.reference import model_files
    from storage.fingerprint import FileHashes, fingerprint
    from tasks.stages.evaluate import benchmark_hash, own_benchmarks

    hashes = FileHashes(store.cache / "source_hashes.json")
    asked = {
        "benchmarks": [
            [chosen.name, chosen.kind, benchmark_hash(chosen.kind, user_path(chosen.path or ""), hashes, split)]
            for chosen in benchmarks
        ],
        "split": split,
        "weights": {which: list(hashes.of(model_files(str(release))).values()) for which, release in releases.items()},
    }
    if own := own_benchmarks(benchmarks):
        asked["own"] = own
    return store.root / "results" / "evaluate" / fingerprint("evaluate", 2, asked, models)[:12]


def search(
    query: Annotated[str, typer.Argument(help="What to look for, in words.")],
    model: ModelOption,
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="How many images.")] = 10,
    base: Annotated[str | None, typer.Option(help="Where a base in local files lies now, if it was moved.")] = None,
    device: DeviceOption = "cpu",
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Rank a run's images for a query, the base model's order beside the tuned one's."""
    from storage.roots import open_store
    from tasks.image_index import search as find_images
    from tasks.models import find_model

    if not query.strip():
        raise ConfigError("the query is empty; say in words what to look for")
    hits = find_images(find_model(model, open_store(root), base), query, count, device)
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
    model: Annotated[str, typer.Argument(help=MODEL)],
    folder: Annotated[Path, typer.Argument(help="New folder.")],
    layout: Annotated[
        Literal["open_clip", "hf", "onnx", "sentence-transformers"],
        typer.Option("--format", "-f", help="The library that is to load it; onnx holds the text tower alone."),
    ] = "open_clip",
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Write a model for open_clip, transformers, sentence-transformers or ONNX, with its evaluation in the card."""
    from storage.roots import open_store
    from tasks.export import export_model
    from tasks.models import find_release

    store = open_store(root)
    files = export_model(find_release(model, store), folder, layout, store)
    if as_json:
        print_json({"folder": str(folder.absolute()), "format": layout, "files": files})
    else:
        typer.echo(f"{len(files)} files in {folder}. Load it with")
        typer.echo(f"  {LOADED_BY[layout].format(folder.absolute())}")


def verify_index(
    base: Annotated[str, typer.Option(help=MODEL)],
    tuned: Annotated[str, typer.Option(help=MODEL)],
    images: Annotated[
        Path | None, typer.Option(exists=True, help="Folder, tar or Parquet: some images are encoded with both models.")
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            exists=True, help=".npy of stored embeddings, a row for each of the images by the order of names."
        ),
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="How many images are encoded.")] = 16,
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Prove that image embeddings made with the base stay valid for the tuned model; exit code 1 if they do not."""
    from storage.roots import open_store
    from tasks.image_index import verify_index as verify
    from tasks.models import find_release

    store = open_store(root)
    proof = verify(str(find_release(base, store)), str(find_release(tuned, store)), images, features, sample)
    if as_json:
        print_json(proof.as_json())
    else:
        for check in proof.checks:
            typer.echo(printable(f"{'same ' if check.valid else 'OTHER'} {check.what}: {check.detail}"))
            for difference in check.differences:
                typer.echo(printable(f"      {difference}"))
        typer.echo(f"stored image embeddings {'stay valid' if proof.valid else 'are NOT valid for the tuned model'}")
    if not proof.valid:
        raise typer.Exit(INVALID)
