"""Options of the commands for an existing image index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BaseOption = Annotated[
    str | None, typer.Option(help="The model before tuning; default: the one that a run's model records.")
]
FeaturesOption = Annotated[
    Path | None,
    typer.Option(
        help="An index of your own: .npy [n, d], Parquet with a vector column, or a folder of shards as clip-retrieval "
        "writes them; default: the images of the model's run."
    ),
]
IdsOption = Annotated[
    Path | None, typer.Option(help="Ids of its rows: text (one per line), a JSON list, or a Parquet column.")
]
ImagesOption = Annotated[
    Path | None, typer.Option(exists=True, help="Folder, tar or Parquet with the images, whose names are the ids.")
]
