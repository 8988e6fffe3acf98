"""`paraclip verify-index`: whether an image index stays valid for a tuned model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from paraclip.flows.commands.common import DEFAULT_ROOT, MODEL, JsonOption, RootOption, print_facts
from paraclip.flows.commands.index_options import IdsOption
from paraclip.storage.roots import open_store
from paraclip.tasks.models import find_release
from paraclip_core.clip.verify_index import verify_index as verify

INVALID = 1


def verify_index(
    base: Annotated[str, typer.Option(help=MODEL)],
    tuned: Annotated[str, typer.Option(help=MODEL)],
    images: Annotated[
        Path | None,
        typer.Option(exists=True, help="Folder, tar or Parquet; some of its images are encoded with both models."),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            exists=True, help="An index of these images; without ids, its rows are in the order of their names."
        ),
    ] = None,
    ids: IdsOption = None,
    sample: Annotated[int, typer.Option(min=1, help="How many images to encode.")] = 16,
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Prove that image embeddings made with the base stay valid for the tuned model; exit code 1 if they do not."""
    store = open_store(root)
    models = {"base": str(find_release(base, store)), "tuned": str(find_release(tuned, store))}
    checks = verify(**models, images=images, features=features, sample=sample, ids=ids)
    valid = all(check.valid for check in checks)
    print_facts({**models, "valid": valid, "checks": [asdict(check) for check in checks]}, as_json)
    if not valid:
        raise typer.Exit(INVALID)
