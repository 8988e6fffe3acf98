"""`paraclip channel`: which model a channel serves, how it came there, and the way back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from paraclip.flows.alerts import announce_rollback
from paraclip.flows.commands.common import (
    DEFAULT_ROOT,
    JsonOption,
    RootOption,
    opened_root,
    print_json,
    print_table,
    say,
)
from paraclip.storage.artifacts import ArtifactStore
from paraclip.tasks.channels import Move, existing_channel, history
from paraclip.tasks.channels import rollback as move_back

app = typer.Typer(no_args_is_help=True, help="Show a channel and its history, and move it back.")

ChannelArgument = Annotated[str, typer.Argument(help="The channel's name.")]
ToOption = Annotated[
    str | None,
    typer.Option(help="Start of a model's fingerprint, of the history or not; default: the model before."),
]


@app.command()
def show(name: ChannelArgument, root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """The model that a channel serves, and its last move."""
    store = opened_root(root)
    channel = existing_channel(store, name)
    last = _rows(store, [history(channel)[-1]])[0]
    facts = {"channel": name, "moved_by": channel.get("moved_by"), "fingerprint": last["after"], **last}
    if as_json:
        print_json(facts)
        return
    import yaml

    say(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True), newline=False)


@app.command("history")
def show_history(name: ChannelArgument, root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """The last moves of a channel, the newest first, and whether each model is still there."""
    store = opened_root(root)
    rows = _rows(store, history(existing_channel(store, name))[::-1])
    if as_json:
        print_json({"channel": name, "moves": rows})
        return
    short = [{**row, "before": (row["before"] or "")[:12], "after": row["after"][:12]} for row in rows]
    shown = [{**row, "there": "yes" if row["there"] else "no"} for row in short]
    print_table("", ["at", "by", "who", "before", "after", "verdict", "there", "reason"], shown)


@app.command()
def rollback(
    name: ChannelArgument, to: ToOption = None, root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False
) -> None:
    """Move a channel to the model before the one that it serves, or to another one that is still there."""
    decision = move_back(opened_root(root), name, to)
    if decision["moved"]:
        announce_rollback(decision)
    if as_json:
        print_json(decision)
    else:
        say(f"{name}: {decision['reason']}")


def _rows(store: ArtifactStore, moves: list[Move]) -> list[dict[str, Any]]:
    """Moves, and whether the model of each is there."""
    there = {move.after: store.peek("finetune", move.after) is not None for move in moves}
    return [asdict(move) | {"there": there[move.after]} for move in moves]
