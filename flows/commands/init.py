"""`paraclip init`: a commented configuration for a folder of captions and images, or for an index and queries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from paraclip.flows.commands.common import JsonOption, print_facts, quoted
from paraclip.flows.commands.init_server import find_server
from paraclip.flows.commands.init_survey import USUAL, Survey, survey_folder, survey_index
from paraclip.storage.files import write_atomic
from paraclip_core.captions.columns import ColumnNames
from paraclip_core.clip.options import BUILT_IN
from paraclip_core.clip.reference import check_reference
from paraclip_core.errors import ConfigError
from paraclip_core.settings import parse_settings, shipped_configs

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
"""Configurations with their comments: for captions and images, and for an index and a log."""
TEMPLATES.filters["quoted"] = quoted


def init(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder of captions and images.")
    ] = Path(),
    captions: Annotated[str | None, typer.Option(help="File or folder with the captions, relative to FOLDER.")] = None,
    images: Annotated[str | None, typer.Option(help="Folder or tar with the images, relative to FOLDER.")] = None,
    caption_column: Annotated[str | None, typer.Option(help="Column with the caption or query.")] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Column with the image's file name or the clicked id.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="An index of image features, in place of FOLDER: .npy, Parquet, or shards.")
    ] = None,
    ids: Annotated[Path | None, typer.Option(help="The ids of the index's rows; default: those in the index.")] = None,
    queries: Annotated[Path | None, typer.Option(help="A log of queries, with --features: text or a table.")] = None,
    base: Annotated[str, typer.Option(help="The CLIP model to repair: that of your image index.")] = "built-in",
    name: Annotated[str, typer.Option(help="Name of the run.")] = "mine",
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("paraclip.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at a folder of captions and images, or at an image index and a log of queries (--features, --queries), and
    write a configuration for it."""
    if output.exists() and not force:
        raise ConfigError(f"{output} exists already; give --force to overwrite it, or another name with --output")
    if base != BUILT_IN:
        check_reference(base)
    columns = ColumnNames(caption=caption_column, image=image_column)
    if features is None and queries is None and ids is None:
        _check_places({"--captions": captions and folder / captions, "--images": images and folder / images})
        seen = survey_folder(folder, captions, images, columns, base)
    elif features is None or queries is None:
        raise ConfigError("--features, the index, and --queries, a log of queries, belong together; give both")
    elif captions is not None or images is not None:
        raise ConfigError(
            "with --features and --queries there are no captions and images to look for; leave out --captions and "
            "--images"
        )
    else:
        _check_places({"--features": features, "--ids": ids, "--queries": queries})
        if base == BUILT_IN:
            raise ConfigError("give --base the model that the index was made with, e.g. ViT-B-32:laion2b_s34b_b79k")
        seen = survey_index(features, ids, queries, columns, base)
    text, notes = _configuration(seen, name, base)
    parse_settings(yaml.safe_load(text), f"the configuration for {features or folder}")
    write_atomic(output, lambda file: file.write(text.encode()))
    print_facts({"configuration": str(output.absolute()), **seen.facts, "notes": seen.notes + notes}, as_json)


def _check_places(places: Mapping[str, Path | str | None]) -> None:
    for option, place in places.items():
        if place is not None and not Path(place).exists():
            raise ConfigError(f"{option}: {place} does not exist")


def _configuration(seen: Survey, name: str, base: str) -> tuple[str, list[str]]:
    """The configuration as YAML, and notes on its engine: ready paraphrases, a server's model or the embedded one."""
    engine: dict[str, Any] = {"paraphrases": seen.paraphrases, "second": None}
    notes: list[str] = []
    if seen.paraphrases is None:
        server = find_server()
        model = server.model or "Qwen/Qwen2.5-7B-Instruct"
        engine |= {"server": server, "model": model, "second": server.second, "prompts": seen.prompts}
        notes = server.notes
    schema = next(iter(shipped_configs().values())).with_name("schema.json")
    text = TEMPLATES.get_template(seen.template).render(
        schema=schema, name=name, base=base, usual=USUAL, **engine, **seen.values
    )
    return text, notes
