"""`paraclip artifacts`: what is under the root, where it came from, whether it is whole, and what may go."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from paraclip.flows.commands.common import (
    DEFAULT_ROOT,
    JsonOption,
    RootOption,
    human_bytes,
    human_seconds,
    opened_root,
    print_json,
    print_table,
    say,
)
from paraclip.storage.artifacts import Artifact, ArtifactStore
from paraclip.tasks.channels import KEPT_MODELS
from paraclip_core.errors import UnknownNameError

app = typer.Typer(no_args_is_help=True, help="List, inspect, check and clean up artifacts.")

NameArgument = Annotated[str, typer.Argument(help="Start of a fingerprint, STAGE/START, or a channel's name.")]


@app.command("ls")
def list_artifacts(
    root: RootOption = DEFAULT_ROOT,
    stage: Annotated[str | None, typer.Option(help="Only this stage.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Finished and unfinished artifacts, and the channels."""
    store = opened_root(root)
    if stage is not None:
        _check_stage(stage, store)
    rows = [_row(artifact, store) for artifact in store.list(stage)]
    unfinished = [
        {"stage": name, "fingerprint": fingerprint, "path": str(path)}
        for name, fingerprint, path in store.unfinished()
        if stage in (None, name)
    ]
    if as_json:
        print_json({"artifacts": rows, "unfinished": unfinished, "channels": store.channels()})
        return
    shown = [{**row, "size": human_bytes(row["bytes"]), "took": human_seconds(row["seconds"])} for row in rows]
    print_table("", ["stage", "fingerprint", "created", "took", "size"], shown)
    if unfinished:
        print_table("unfinished", ["stage", "fingerprint", "path"], unfinished)
    for name, value in store.channels().items():
        mover = f", moved by {value['moved_by']}" if "moved_by" in value else ""
        say(f"channel {name}: {value.get('stage')}/{value.get('fingerprint')}{mover}")


@app.command()
def show(name: NameArgument, root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """An artifact's manifest."""
    store = opened_root(root)
    artifact = store.named(name)
    manifest = {**asdict(artifact.manifest), "path": store.uri(artifact)}
    if as_json:
        print_json(manifest)
        return
    import yaml

    say(yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True), newline=False)


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(help="As for show; all artifacts without it.")] = None,
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Compare every file with its manifest; ends with code 1 where something differs."""
    store = opened_root(root)
    chosen = store.list() if name is None else [store.named(name)]
    checked = [{"stage": a.stage, "fingerprint": a.fingerprint, "problems": store.verify(a)} for a in chosen]
    if name is None:
        lost = store.unreadable()
        checked += [{"stage": stage, "fingerprint": print_, "problems": [problem]} for stage, print_, problem in lost]
    bad = [entry for entry in checked if entry["problems"]]
    if as_json:
        print_json({"checked": len(checked), "damaged": bad})
    else:
        for entry in bad:
            for problem in entry["problems"]:
                say(f"{entry['stage']}/{entry['fingerprint']}: {problem}")
        say(f"{len(checked)} artifacts checked, {len(bad)} damaged")
    if bad:
        raise typer.Exit(1)


@app.command()
def gc(
    root: RootOption = DEFAULT_ROOT,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it they are only listed.")] = False,
    keep_days: Annotated[float, typer.Option(min=0, help="Keep what is younger than this many days.")] = 1.0,
    keep_models: Annotated[
        int, typer.Option(min=0, help="Earlier models of each channel that are kept.")
    ] = KEPT_MODELS,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Unfinished work too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete what no channel's models need and no stage in progress reads. The generation cache is never touched.

    A channel's models are the one that it serves and some before, which `paraclip channel rollback` can go back to.
    A run's artifacts have no channel before it ends, so what is younger than a day is kept unless you say otherwise.
    """
    from paraclip.tasks.cleaning import collect, remove

    store = opened_root(root)
    collected = collect(store, keep_days, unfinished, keep_models)
    if yes:
        remove(collected.garbage, store)
    if as_json:
        items, in_use = ([one.as_json() for one in some] for some in (collected.garbage, collected.skipped))
        print_json({"deleted": yes, "items": items, "in_use": in_use})
        return
    for one in collected.skipped:
        say(f"skipped {one.stage}/{one.fingerprint}: {one.used}")
    for one in collected.garbage:
        say(f"{'deleted' if yes else 'would delete'} {one.path} ({human_bytes(one.size)})")
    if collected.young:
        say(f"{collected.young} more stay because they, or what was made from them, are young; see --keep-days")
    total = human_bytes(sum(one.size for one in collected.garbage))
    say(f"{len(collected.garbage)} folders, {total}" + ("" if yes or not collected.garbage else "; --yes deletes them"))


def _check_stage(stage: str, store: ArtifactStore) -> None:
    from paraclip.tasks.run.dag import STAGES

    there = {artifact.stage for artifact in store.list()} | {name for name, _, _ in store.unfinished()}
    if stage not in (known := [*STAGES, *sorted(there - set(STAGES))]):
        raise UnknownNameError(f"there is no stage {stage!r}; there are {', '.join(known)}")


def _row(artifact: Artifact, store: ArtifactStore) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "stage": manifest.stage,
        "fingerprint": manifest.fingerprint,
        "created": manifest.created,
        "seconds": manifest.wall_seconds,
        "bytes": manifest.size(),
        "metrics": manifest.metrics,
        "path": store.uri(artifact),
    }
