"""`paraclip export`, `export-dataset` and `push`: models and paraphrases for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paraclip.flows.commands.common import (
    DEFAULT_ROOT,
    MODEL,
    ConfigOption,
    JsonOption,
    RootOption,
    RunRootOption,
    SetOption,
    opened_root,
    print_facts,
    settings_from,
)
from paraclip.storage.roots import open_store
from paraclip.tasks.dataset import export_dataset as write_dataset
from paraclip.tasks.dataset import find_paraphrases, read_opt_outs
from paraclip.tasks.export import Layout, export_model
from paraclip.tasks.models import find_release
from paraclip.tasks.push import push_folder


def export(
    model: Annotated[str, typer.Argument(help=MODEL)],
    folder: Annotated[Path, typer.Argument(help="New folder.")],
    layout: Annotated[
        Layout,
        typer.Option("--format", "-f", help="The library that will load it; onnx holds only the text encoder."),
    ] = "open_clip",
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
    store = open_store(root)
    stated = {"language": language, "datasets": dataset, "license": license_}
    about = {name: value for name, value in stated.items() if value}
    files = export_model(find_release(model, store), folder, layout, store, about)
    print_facts({"folder": str(folder.absolute()), "format": layout, "files": files}, as_json)


def push(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="What an export wrote.")],
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Repository on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Push an exported model or data set to the Hugging Face hub, in one commit; its card then loads it from there."""
    typer.echo(f"pushed to {push_folder(folder, repo, private)}")


def export_dataset(
    folder: Annotated[Path, typer.Argument(help="New folder.")],
    config: ConfigOption = None,
    set_: SetOption = None,
    artifact: Annotated[
        str | None,
        typer.Option(
            "--artifact", "-a", help="The paraphrases: the start of a fingerprint, STAGE/START, or a run's channel."
        ),
    ] = None,
    opt_outs: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Rows to leave out: a caption id, image id or caption per line."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Title of the data card.")] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Language code of the captions, `en` if none is given; may be repeated.")
    ] = None,
    contact: Annotated[str, typer.Option(help="Contact for removals on the card, e.g. an e-mail address.")] = "",
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="ORG/NAME", help="Model on the hub that was tuned on it, for the card; may be repeated."),
    ] = None,
    root: RunRootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write finished paraphrases as Parquet shards and a data card, for `datasets.load_dataset`, DuckDB and the hub."""
    settings = settings_from(config, set_)
    store = opened_root(settings.run.root if root is None else root)
    given = settings if config is not None or set_ else None
    paraphrases = find_paraphrases(store, artifact, given)
    entries = None if opt_outs is None else read_opt_outs(opt_outs)
    written = write_dataset(
        paraphrases,
        folder,
        store,
        name=name or (settings.name if config is not None else None),
        settings=given,
        opt_outs=entries,
        languages=language or ["en"],
        contact=contact,
        models=model or (),
    )
    facts = {
        "folder": str(folder.absolute()),
        "files": written.files,
        "artifact": f"{paraphrases.stage}/{paraphrases.fingerprint}",
        "rows": written.rows,
        "license": written.license,
        "opt_outs": {"entries": len(entries or ()), "rows": written.left_out, "unmatched": written.unmatched},
    }
    print_facts(facts, as_json)
