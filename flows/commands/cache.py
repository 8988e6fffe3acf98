"""`paraclip cache`: every generation that was ever paid for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from flows.commands.common import JsonOption, RootOption, print_json

if TYPE_CHECKING:
    from storage.generations import GenerationStore

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The generation cache.")

DEFAULT_ROOT = Path("runs")


@app.command()
def stats(root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """How many generations there are, of which models and prompts."""
    with _opened(root) as store:
        found = asdict(store.stats())
    if as_json:
        print_json(found)
        return
    import yaml

    typer.echo(
        yaml.safe_dump({**found, "groups": list(found["groups"])}, sort_keys=False, allow_unicode=True), nl=False
    )


@app.command()
def rebuild(root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """Build the index anew from the segments, which hold the truth."""
    with _opened(root) as store:
        store.rebuild()
        found = asdict(store.stats())
    if as_json:
        print_json(found)
    else:
        typer.echo("rebuilt from the segments")


@contextmanager
def _opened(root: Path) -> Iterator[GenerationStore]:
    from storage.artifacts import ArtifactStore
    from storage.generations import GenerationStore

    store = GenerationStore(ArtifactStore(root).cache)
    try:
        yield store
    finally:
        store.close()
