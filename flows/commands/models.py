"""`paraclip export`, `apply` and `push`, and how models are named on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.commands.common import DEFAULT_ROOT, JsonOption, PrivateOption, PushOption, RootOption, print_json
from paraclip_core.errors import ConfigError

if TYPE_CHECKING:
    from tasks.export import Layout

__all__ = ["MODEL", "DeviceOption", "apply", "export", "push"]

LOADED_BY = {
    "open_clip": 'model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{}"); model.eval()',
    "hf": 'transformers.CLIPModel.from_pretrained("{}")',
    "onnx": 'onnxruntime.InferenceSession("{}/text_model.onnx")',
    "onnx-int8": 'onnxruntime.InferenceSession("{}/text_model.onnx")',
    "delta": "paraclip apply BASE {} -o MODEL",
    "immich": "cp -r {}/. MODEL_CACHE/clip/NAME/  # see its README.md",
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
        Literal["open_clip", "hf", "onnx", "sentence-transformers", "immich"],
        typer.Option("--format", "-f", help="The library that is to load it; onnx holds the text tower alone."),
    ] = "open_clip",
    int8: Annotated[
        bool, typer.Option("--int8", help="With --format onnx: weights in int8; the loss is measured.")
    ] = False,
    delta: Annotated[
        bool, typer.Option("--delta", help="The text tower's difference from its base, for `paraclip apply`.")
    ] = False,
    base: Annotated[
        str | None, typer.Option(help="With --delta: the model that it was tuned from; default: what the run says.")
    ] = None,
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
    """Write a model for another library, for ONNX or for Immich, with its evaluation in the card."""
    from storage.roots import open_store
    from tasks.export import export_model, in_words, measured
    from tasks.hub import check_push, push_folder
    from tasks.models import find_release

    if push is not None:
        check_push(push)
    store = open_store(root)
    stated = {"language": language, "datasets": dataset, "license": license_}
    about = {name: value for name, value in stated.items() if value}
    chosen = _layout(layout, int8, delta, base)
    source = None if base is None else str(find_release(base, store))
    files = export_model(find_release(model, store), folder, chosen, store, about, source)
    figures = measured(folder, chosen)
    address = None if push is None else push_folder(folder, push, private)
    if as_json:
        pushed = {} if address is None else {"pushed": address}
        print_json({"folder": str(folder.absolute()), "format": chosen, "files": files, **figures, **pushed})
        return
    if figures:
        typer.echo(in_words(figures))
    typer.echo(f"{len(files)} files in {folder}. Load it with")
    typer.echo(f"  {LOADED_BY[chosen].format(folder.absolute())}")
    if address is not None:
        typer.echo(f"pushed to {address}")


def _layout(layout: Layout, int8: bool, delta: bool, base: str | None) -> Layout:
    if int8 and layout != "onnx":
        raise ConfigError("--int8 needs --format onnx")
    if delta and layout != "open_clip":
        raise ConfigError(f"--delta is added to a model of open_clip; leave out --format {layout}")
    if base is not None and not delta:
        raise ConfigError("--base is what a delta is added to; give --delta, too")
    return "delta" if delta else "onnx-int8" if int8 else layout


def apply(
    base: Annotated[str, typer.Argument(help=f"The model that was tuned. {MODEL}")],
    delta: Annotated[Path, typer.Argument(exists=True, help="What `paraclip export --delta` wrote: folder or file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder.")],
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Add a delta to its base: an open_clip release folder, which every command takes as a model."""
    from storage.roots import open_store
    from tasks.export import apply_to_base
    from tasks.models import find_release

    files = apply_to_base(find_release(base, open_store(root)), delta, out)
    if as_json:
        print_json({"folder": str(out.absolute()), "files": files})
        return
    typer.echo(f"{len(files)} files in {out}. Load it with")
    typer.echo(f"  {LOADED_BY['open_clip'].format(out.absolute())}")


def push(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="What an export wrote.")],
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Where to on the hub.")],
    private: PrivateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Push an exported model or data set to the Hugging Face hub, in one commit; its card then loads it from there."""
    from tasks.hub import push_folder

    address = push_folder(folder, repo, private)
    if as_json:
        print_json({"pushed": address})
    else:
        typer.echo(f"pushed to {address}")
