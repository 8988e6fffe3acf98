"""`paraclip artifacts`, `cache` and `channel`: what is under a root, where it came from, and what may go."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from paraclip.flows.commands.common import (
    DEFAULT_ROOT,
    JsonOption,
    RootOption,
    human_bytes,
    human_seconds,
    opened_root,
    print_facts,
    print_json,
    print_table,
    say,
)
from paraclip.storage.answers import AnswerStore, Merged
from paraclip.storage.roots import open_answers, open_store
from paraclip.tasks.channels import existing_channel, history
from paraclip.tasks.channels import rollback as move_back
from paraclip.tasks.gc import KEPT_MODELS, collect, remove

NameArgument = Annotated[str, typer.Argument(help="Start of a fingerprint, STAGE/START, or a channel's name.")]
ChannelArgument = Annotated[str, typer.Argument(help="The channel's name.")]


def list_artifacts(root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """List finished and unfinished artifacts, and the channels."""
    store = opened_root(root)
    rows = [
        {
            "stage": artifact.stage,
            "fingerprint": artifact.fingerprint,
            "created": artifact.manifest.created,
            "seconds": artifact.manifest.wall_seconds,
            "bytes": artifact.manifest.size(),
            "metrics": artifact.manifest.metrics,
            "path": store.uri(artifact),
        }
        for artifact in store.list()
    ]
    unfinished = [
        {"stage": name, "fingerprint": fingerprint, "path": str(path)} for name, fingerprint, path in store.unfinished()
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
        run = next((f" of the run {move.run}" for move in history(value)[-1:] if move.run), "")
        say(f"channel {name}: {value.get('stage')}/{value.get('fingerprint')}{run}{mover}")


def show(name: NameArgument, root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """Show an artifact's manifest."""
    store = opened_root(root)
    artifact = store.named(name)
    print_facts({**asdict(artifact.manifest), "path": store.uri(artifact)}, as_json)


def verify(
    name: Annotated[str | None, typer.Argument(help="As for show; default: all artifacts.")] = None,
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Compare every file with its manifest; ends with code 1 if something differs."""
    store = opened_root(root)
    chosen = store.list() if name is None else [store.named(name)]
    checked = [{"stage": a.stage, "fingerprint": a.fingerprint, "problems": store.verify(a)} for a in chosen]
    unreadable = store.unreadable() if name is None else []
    checked += [{"stage": stage, "fingerprint": print_, "problems": [problem]} for stage, print_, problem in unreadable]
    damaged = [entry for entry in checked if entry["problems"]]
    print_facts({"checked": len(checked), "damaged": damaged}, as_json)
    if damaged:
        raise typer.Exit(1)


def gc(
    root: RootOption = DEFAULT_ROOT,
    yes: Annotated[bool, typer.Option("--yes", help="Delete them; without it they are only listed.")] = False,
    keep_days: Annotated[float, typer.Option(min=0, max=36500, help="Keep what is younger than this many days.")] = 1.0,
    keep_models: Annotated[int, typer.Option(min=0, help="Earlier models to keep of each channel.")] = KEPT_MODELS,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Unfinished work as old, too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete what no channel's models need. The answers cache is never touched.

    A channel's models are the one that it serves and some before, which `paraclip channel rollback` can go back to.
    A run's artifacts have no channel before it ends, so what is younger than a day is kept unless you say otherwise;
    a Retry makes again what was deleted.
    """
    store = opened_root(root)
    collected = collect(store, keep_days, unfinished, keep_models)
    items = remove(collected.garbage, store) if yes else collected.garbage
    if as_json:
        print_json({"deleted": yes, "items": [item.as_json() for item in items]})
        return
    for item in items:
        say(f"{'deleted' if yes else 'would delete'} {item.path} ({human_bytes(item.size)})")
    if collected.young:
        say(f"{collected.young} more stay because they, or what was made from them, are young; see --keep-days")
    total = human_bytes(sum(item.size for item in items))
    say(f"{len(items)} folders, {total}" + ("" if yes or not items else "; --yes deletes them"))


def stats(root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """Show how many answers there are, by model and prompt."""
    with closing(open_answers(opened_root(root))) as answers:
        print_facts(asdict(answers.stats()), as_json)


def export(
    folder: Annotated[Path, typer.Argument(help="Cache folder to make or add to.")],
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Copy answers to a folder that `import` reads; those it already holds are skipped."""
    with closing(open_answers(opened_root(root))) as answers:
        # A shared cache first fetches what other machines have.
        answers.refresh()
        merged = AnswerStore(folder).merge(answers.folder)
    _print_merged(merged, as_json)


def import_(
    folder: Annotated[Path, typer.Argument(help="Another cache: an exported folder, or ROOT/cache.")],
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Import another cache's answers; existing answers stay. Ends with code 1 if some were damaged."""
    with closing(open_answers(open_store(root))) as answers:
        merged = answers.merge(folder)
    _print_merged(merged, as_json)


def compact(root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """Join many small parts into few big ones; it may be killed at any time, and others wait meanwhile."""
    with closing(open_answers(opened_root(root))) as answers:
        before, after = answers.compact()
    print_facts({"parts before": before, "parts now": after}, as_json)


def _print_merged(merged: Merged, as_json: bool) -> None:
    print_facts(asdict(merged), as_json)
    if merged.damaged:
        raise typer.Exit(1)


def show_history(name: ChannelArgument, root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """Show the last moves of a channel, newest first, and whether each model still exists."""
    store = opened_root(root)
    moves: list[dict[str, Any]] = [
        asdict(move) | {"there": store.peek("finetune", move.after) is not None}
        for move in history(existing_channel(store, name))[::-1]
    ]
    if as_json:
        print_json({"channel": name, "moves": moves})
        return
    short = [{**row, "before": (row["before"] or "")[:12], "after": row["after"][:12]} for row in moves]
    shown = [{**row, "there": "yes" if row["there"] else "no"} for row in short]
    print_table("", ["at", "by", "who", "run", "before", "after", "verdict", "there", "reason"], shown)


def rollback(
    name: ChannelArgument,
    to: Annotated[
        str | None, typer.Option(help="Start of a fingerprint in the channel's history; default: the previous model.")
    ] = None,
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Move a channel back to the previous model, or to an earlier one in its history."""
    decision = move_back(opened_root(root), name, to)
    if decision["moved"] and os.environ.get("PREFECT_API_URL"):
        # Prefect takes seconds to import.
        from paraclip.flows.prefect_ui import PrefectUi, rolled_back

        event, text, facts = rolled_back(decision)
        PrefectUi(name).send_event(event, text, **facts)
    if as_json:
        print_json(decision)
    else:
        say(f"{name}: {decision['reason']}")
