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
    ConfigOption,
    JsonOption,
    RootOption,
    RunRootOption,
    SetOption,
    print_json,
    print_table,
    say,
    settings_from,
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

    shown = {**counts, "groups": list(counts["groups"])}
    say(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), newline=False)


@app.command()
def rebuild(root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """Make the DuckDB file again from the segments, which hold the truth."""
    from paraclip.storage.cache_tools import cache_stats

    with _opened(root) as store:
        store.rebuild()
        counts = asdict(cache_stats(store))
    if as_json:
        print_json(counts)
    else:
        typer.echo("rebuilt from the segments")


@app.command()
def why(
    what: Annotated[
        str, typer.Argument(metavar="KEY|CAPTION", help="A generation's key, or the text to be asked for.")
    ],
    config: ConfigOption = None,
    set_: SetOption = None,
    root: RunRootOption = None,
    step: Annotated[int, typer.Option(min=1, max=2, help="Step of the text; at step 2 it is paraphrase 1.")] = 1,
    attempt: Annotated[int, typer.Option(min=0, help="Attempt of the text.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Which part of the request's key differs between the configuration and the nearest generation kept."""
    from paraclip.tasks.context import Run
    from paraclip.tasks.why import explain

    run = Run(settings_from(config, set_, root))
    with _opened(run.settings.run.root, must_exist=False) as store:
        explanation = explain(run, store, what, step, attempt).as_json()
    if as_json:
        print_json(explanation)
    else:
        _print_why(explanation)


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


@app.command()
def verify(root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """Read every segment and compare the tables with them; ends with code 1 where something was wrong."""
    from paraclip.storage.cache_tools import verify_cache

    with _opened(root) as store:
        result = verify_cache(store)
    if as_json:
        print_json({**asdict(result), "sound": result.sound})
    else:
        for name in result.torn:
            say(f"{name} is damaged and set aside as {name}.torn; what it held is asked for again when it is needed")
        for name in result.mended:
            say(f"{name} was not in the tables as it should be; they are made again")
        before = f" ({result.torn_before} before)" if result.torn_before else ""
        whole = f"{result.segments} segments with {result.rows} generations and {result.verdicts} verdicts are sound"
        typer.echo(f"{whole}, {len(result.torn)} torn{before}")
    if not result.sound:
        raise typer.Exit(1)


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


def _print_why(explanation: dict[str, Any]) -> None:
    nearest, differing = explanation["nearest"], {entry["part"] for entry in explanation["differences"]}
    if explanation["cached"]:
        say(f"kept: the request {explanation['key']} is answered and costs nothing")
    elif nearest is None:
        say(f"not kept: the request {explanation['key']} would be made, and no generation is kept yet")
    else:
        say(f"not kept: the request {explanation['key']} would be made; it differs in {', '.join(sorted(differing))}")
    if nearest is None:
        return
    names = [
        *explanation["asked"],
        *(name for name in nearest if name not in (*explanation["asked"], "key", "completions")),
    ]
    rows = [
        {
            "part": name,
            "asked": str(explanation["asked"].get(name, "")),
            "kept": str(nearest.get(name, "")),
            "differs": "yes" if name in differing else "",
        }
        for name in names
    ]
    print_table(f"nearest generation kept: {nearest['key']}", ["part", "asked", "kept", "differs"], rows)
    for answer in nearest["completions"]:
        say(f"answer: {answer}")


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
