"""`paraclip export`, and how models are named on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.commands.common import DEFAULT_ROOT, JsonOption, RootOption, print_json

__all__ = ["MODEL", "DeviceOption", "export"]

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

DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


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
