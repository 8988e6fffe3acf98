"""`paraclip export` and `export-dataset`: models and paraphrases for others."""

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
from paraclip.tasks.dataset import find_paraphrases
from paraclip.tasks.export import Layout, export_model
from paraclip.tasks.models import find_release
from paraclip_core.errors import ConfigError


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
    root: RunRootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write finished paraphrases as Parquet and a card, for `datasets.load_dataset`, DuckDB and the hub."""
    if artifact is None and config is None and not set_:
        raise ConfigError("specify the paraphrases: a configuration (-c), or --artifact with a fingerprint or channel")
    settings = settings_from(config, set_)
    store = opened_root(settings.run.root if root is None else root)
    paraphrases = find_paraphrases(store, artifact, settings)
    name = f"paraclip-{paraphrases.fingerprint[:8]}" if config is None else settings.name
    rows = write_dataset(paraphrases, folder, store, name)
    facts = {"artifact": f"{paraphrases.stage}/{paraphrases.fingerprint}", "rows": rows}
    print_facts({"folder": str(folder.absolute()), **facts}, as_json)
