"""`paraclip export` and `push`, and how models are named on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from paraclip.flows.commands.common import DEFAULT_ROOT, JsonOption, PrivateOption, PushOption, RootOption, print_json

LOADED_BY = {
    "open_clip": 'model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{}"); model.eval()',
    "hf": 'transformers.CLIPModel.from_pretrained("{}")',
    "onnx": 'onnxruntime.InferenceSession("{}/text_model.onnx")',
}
MODEL = (
    "A channel, the start of a fingerprint or STAGE/START, a model folder, an open_clip name such as "
    "ViT-B-32:laion2b_s34b_b79k, or ViT-B-32:FILE with weights."
)

DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def export(
    model: Annotated[str, typer.Argument(help=MODEL)],
    folder: Annotated[Path, typer.Argument(help="New folder.")],
    layout: Annotated[
        Literal["open_clip", "hf", "onnx"],
        typer.Option("--format", "-f", help="The library that is to load it; onnx holds the text tower alone."),
    ] = "open_clip",
    push: PushOption = None,
    private: PrivateOption = False,
    language: Annotated[
        list[str] | None, typer.Option(help="Language code of the texts, for the card; may be repeated.")
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORG/NAME", help="Data set on the hub that it was tuned on, for the card; may be repeated."
        ),
    ] = None,
    license_: Annotated[str | None, typer.Option("--license", help="Its license, as the hub calls it.")] = None,
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Write a model for another library or for ONNX, with its evaluation in the card."""
    from paraclip.storage.roots import open_store
    from paraclip.tasks.export import check_push, export_model, push_folder
    from paraclip.tasks.models import find_release

    if push is not None:
        check_push(push)
    store = open_store(root)
    stated = {"language": language, "datasets": dataset, "license": license_}
    about = {name: value for name, value in stated.items() if value}
    files = export_model(find_release(model, store), folder, layout, store, about)
    address = None if push is None else push_folder(folder, push, private)
    if as_json:
        pushed = {} if address is None else {"pushed": address}
        print_json({"folder": str(folder.absolute()), "format": layout, "files": files, **pushed})
        return
    typer.echo(f"{len(files)} files in {folder}. Load it with")
    typer.echo(f"  {LOADED_BY[layout].format(folder.absolute())}")
    if address is not None:
        typer.echo(f"pushed to {address}")


def push(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="What an export wrote.")],
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Where to on the hub.")],
    private: PrivateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Push an exported model or data set to the Hugging Face hub, in one commit; its card then loads it from there."""
    from paraclip.tasks.export import push_folder

    address = push_folder(folder, repo, private)
    if as_json:
        print_json({"pushed": address})
    else:
        typer.echo(f"pushed to {address}")
