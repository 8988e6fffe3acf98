"""`paraclip cache`: every answer that was ever paid for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paraclip.flows.commands.common import (
    DEFAULT_ROOT,
    JsonOption,
    RootOption,
    print_json,
    say,
)

if TYPE_CHECKING:
    from paraclip.storage.answers import AnswerStore, Merged

app = typer.Typer(no_args_is_help=True, help="The answers cache.")


@app.command()
def stats(root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """How many answers there are, of which models and prompts."""
    with _opened(root) as store:
        counts = asdict(store.stats())
    if as_json:
        print_json(counts)
        return
    import yaml

    say(yaml.safe_dump(counts, sort_keys=False, allow_unicode=True), newline=False)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="A cache folder to make or to add to.")],
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Copy answers to a folder that `import` reads; what it holds already is passed over."""
    from paraclip.storage.answers import AnswerStore

    with _opened(root) as store:
        # A shared cache first fetches what other machines have.
        store.refresh()
        merged = AnswerStore(folder).merge(store.folder)
    _print_merged(merged, f"exported to {folder}", as_json)


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="Another cache: an exported folder, or ROOT/cache.")],
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Take over another cache's answers; what is answered here stays as it is. Ends with 1 if some were damaged."""
    with _opened(root, must_exist=False) as store:
        merged = store.merge(folder)
    _print_merged(merged, f"imported from {folder}", as_json)


@app.command()
def compact(root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """Join many small parts to few big ones; it may be killed at any time, and others wait meanwhile."""
    with _opened(root) as store:
        counts = asdict(store.compact())
    if as_json:
        print_json(counts)
    else:
        typer.echo(f"{counts['before']} parts before, {counts['after']} now")


def _print_merged(merged: Merged, what: str, as_json: bool) -> None:
    if as_json:
        print_json(asdict(merged))
    else:
        say(f"{what}: {merged.new} new answers, {merged.known} known")
        if merged.damaged:
            typer.echo(f"{merged.damaged} parts are damaged and were left where they are")
    if merged.damaged:
        raise typer.Exit(1)


@contextmanager
def _opened(root: str, must_exist: bool = True) -> Iterator[AnswerStore]:
    from paraclip.storage.roots import check_root, open_answers, open_store

    artifacts = open_store(root)
    if must_exist:
        check_root(artifacts)
    with closing(open_answers(artifacts)) as store:
        yield store
