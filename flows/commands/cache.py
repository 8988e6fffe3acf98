"""`paraclip cache`: every generation that was ever paid for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paraclip.flows.commands.common import (
    DEFAULT_ROOT,
    JsonOption,
    RootOption,
    print_json,
    say,
)

if TYPE_CHECKING:
    from paraclip.storage.generations import GenerationStore

app = typer.Typer(no_args_is_help=True, help="The generation cache.")


EngineOption = Annotated[str | None, typer.Option(help="Only generations of this engine; * stands for anything.")]
ModelOption = Annotated[str | None, typer.Option(help="Only generations of this model; * stands for anything.")]
StepOption = Annotated[
    int | None, typer.Option(min=0, max=3, help="Only this step; 0: single words, 3: questions to a judge.")
]


@app.command()
def stats(root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """How many generations there are, of which models and prompts."""
    from paraclip.storage.cache_tools import cache_stats

    with _opened(root) as store:
        counts = asdict(cache_stats(store))
    if as_json:
        print_json(counts)
        return
    import yaml

    say(yaml.safe_dump(counts, sort_keys=False, allow_unicode=True), newline=False)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="A cache folder to make or to add to.")],
    root: RootOption = DEFAULT_ROOT,
    engine: EngineOption = None,
    model: ModelOption = None,
    step: StepOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy generations to a folder that `import` reads; what it holds already is passed over."""
    from paraclip.storage.cache_merge import merge
    from paraclip.storage.generations import GenerationStore

    with _opened(root) as store:
        # A shared cache first fetches what other machines have.
        store.refresh()
        merged = asdict(merge(GenerationStore(folder), store.folder, _wanted(engine, model, step)))
    _print_merged(merged, f"exported to {folder}", as_json)


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="Another cache: an exported folder, or ROOT/cache.")],
    root: RootOption = DEFAULT_ROOT,
    engine: EngineOption = None,
    model: ModelOption = None,
    step: StepOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take over another cache's generations; what is answered here stays as it is. Ends with 1 if some were damaged."""
    from paraclip.storage.cache_merge import merge

    with _opened(root, must_exist=False) as store:
        merged = asdict(merge(store, folder, _wanted(engine, model, step)))
    _print_merged(merged, f"imported from {folder}", as_json)


@app.command()
def compact(root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """Join many small segments to few big ones; others may go on writing, and it may be killed at any time."""
    from paraclip.storage.cache_merge import compact as join

    with _opened(root) as store:
        counts = asdict(join(store))
    if as_json:
        print_json(counts)
        return
    typer.echo(f"{counts['before']} segments before, {counts['after']} now; {counts['rows']} rows were moved")
    if counts["torn"]:
        typer.echo(f"{counts['torn']} segments were damaged and set aside")


def _wanted(engine: str | None, model: str | None, step: int | None) -> dict[str, str]:
    chosen = {"engine": engine, "model": model, "step": None if step is None else str(step)}
    return {column: pattern for column, pattern in chosen.items() if pattern is not None}


def _print_merged(counts: dict[str, Any], what: str, as_json: bool) -> None:
    if as_json:
        print_json(counts)
    else:
        unwanted = f", {counts['unwanted']} not asked for" if counts["unwanted"] else ""
        new = f"{counts['new']} new generations in {counts['segments']} segments"
        say(f"{what}: {new}, {counts['known']} known{unwanted}")
        if counts["damaged"]:
            typer.echo(f"{counts['damaged']} segments are damaged and were left where they are")
    if counts["damaged"]:
        raise typer.Exit(1)


@contextmanager
def _opened(root: str, must_exist: bool = True) -> Iterator[GenerationStore]:
    from paraclip.storage.roots import check_root, open_generations, open_store

    artifacts = open_store(root)
    if must_exist:
        check_root(artifacts)
    store = open_generations(artifacts)
    try:
        yield store
    finally:
        store.close()
