"""`paraclip promote`: what `regenerate` does after a run, asked for by hand."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flows.commands.common import ConfigOption, JsonOption, SetOption, print_json, print_table, say, settings_from
from flows.commands.run import HELD, GateOption
from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError

__all__ = ["promote"]

ChannelOption = Annotated[str, typer.Option(help="The channel to move.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Move it whatever the gate says.")]


def promote(
    config: ConfigOption = None,
    set_: SetOption = None,
    channel: ChannelOption = "production",
    force: ForceOption = False,
    gate: GateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Move a channel to a finished run's model, if it beats its base and is no worse than the channel's model."""
    from tasks.display import shown_progress

    settings = settings_from(config, set_)
    with shown_progress("evaluate champion") as progress:
        decision = _decide(settings, channel, force, progress)
    if as_json:
        print_json(decision)
    else:
        if decision["against_champion"]:
            columns = ["benchmark", "metric", "champion", "challenger", "delta", "low", "high"]
            print_table("", columns, decision["against_champion"])
        say(f"{channel}: {decision['reason']}")
    if gate and not decision["moved"]:
        raise typer.Exit(HELD)


def _decide(settings: Settings, channel: str, force: bool, progress: Any) -> dict[str, Any]:
    from storage.roots import open_store
    from tasks.dag import resolve
    from tasks.promotion import check_channel, decide
    from tasks.results import gather_result, stage_row
    from tasks.run import finished_artifacts

    store = open_store(settings.run.root)
    check_channel(settings.name, channel, store)
    nodes = resolve(settings, store)
    artifacts = finished_artifacts(nodes, store)
    missing = [name for name in nodes if name not in artifacts]
    if missing:
        raise ConfigError(
            f"the run {settings.name!r} is not finished ({', '.join(missing)}); "
            "call `paraclip run` with the same settings first"
        )
    rows = [stage_row(artifact, True, 0.0) for artifact in artifacts.values()]
    return decide(settings, store, channel, gather_result(settings, store, rows, artifacts), progress, force)
