"""`paraclip search`, `export` and `verify-index`: what to do with models that are there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flows.commands.common import DEFAULT_ROOT, JsonOption, RootOption, print_json, print_table, printable
from paraclip_core.errors import ConfigError

__all__ = ["MODEL", "DeviceOption", "export", "search", "verify_index"]

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
