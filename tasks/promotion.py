"""Whether a challenger takes over a channel."""

from __future__ import annotations

from typing import Any

from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError
from paraclip_core.progress import Progress, silent
from storage.artifacts import ArtifactStore
from storage.files import write_json
from tasks.champion import Duel, challenge, duel_rows
from tasks.results import BY_PROMOTION, BY_RUN, Result, channel_value, why

__all__ = ["check_channel", "decide"]


def check_channel(run: str, channel: str, store: ArtifactStore) -> None:
    """See before a run that `channel` can be moved by its verdict.

    Raises:
        ConfigError: it belongs to a run, which moves it whatever the verdict.
        ArtifactError: it cannot be a channel's name, or its file is damaged.
    """
    current = store.channel(channel) or {}
    if channel == run:
        raise ConfigError(
            f"the run and the channel are both named {channel!r}, and a run moves the channel of its own name whatever "
            f"its verdict; give the run another name, or name another channel"
        )
    if current.get("moved_by") == BY_RUN:
        raise ConfigError(
            f"the channel {channel!r} has the name of a run, and so follows every such run, promoted or held; name "
            f"another channel (or delete {channel}.json under channels/, if that run is no more)"
        )


def decide(
    settings: Settings,
    store: ArtifactStore,
    channel: str,
    result: Result,
    progress: Progress = silent,
    force: bool = False,
) -> dict[str, Any]:
    """Move `channel` to the run's model if that is better than its base and no worse than what the channel serves.

    The decision is returned, and kept as ``results/<run>/promotion.json``.

    Args:
        settings: those of the run.
        store: its store.
        channel: the channel.
        result: the finished run's outcome.
        progress: told how far the champion's evaluation is, where it has to be made.
        force: move it in any case.

    Returns:
        `moved`, `reason`, the fingerprints `before` and `after`, and, where both were compared, a row for each figure
        in `against_champion`.

    Raises:
        ArtifactError: an artifact of the run is gone, or the root cannot be written.
        ParaclipError: what the champion's evaluation raised.
    """
    current = store.channel(channel) or {}
    before = current.get("fingerprint")
    stages = {row["stage"]: row["fingerprint"] for row in result.stages}
    challenger = stages["finetune"]
    moved, duel = False, None
    if challenger == before:
        reason = "kept: the challenger is the model that it serves already"
    elif force:
        moved, reason = True, f"moved to {challenger} by hand"
    elif result.verdict != "promote":
        reason = f"kept at {before or 'no model'}, the challenger {challenger} is held: {why(result.summary)}"
    else:
        duel = challenge(settings, store, before, stages["evaluate"], progress) if before else None
        moved, reason = _verdict(before, challenger, why(result.summary), duel)
    if moved:
        value = channel_value(stages, result.verdict, BY_PROMOTION, before=before, reason=reason)
        now = _move(store, channel, before, value)
        if now != before:
            moved = False
            reason = f"kept at {now}, another promotion moved it there meanwhile; promote {challenger} again"
    rows = duel_rows(duel.comparison) if duel and duel.comparison else []
    decision = {
        "channel": channel,
        "moved": moved,
        "reason": reason,
        "before": before,
        "after": challenger,
        "against_champion": rows,
    }
    write_json(store.root / "results" / result.name / "promotion.json", decision)
    return decision


def _move(store: ArtifactStore, channel: str, before: str | None, value: dict[str, Any]) -> str | None:
    """Set a channel that still serves `before`, and leave one that does not; what it served, either way."""
    with store.channel_lock(channel):
        # The champion's evaluation may take an hour, in which another promotion can be faster.
        now = (store.channel(channel) or {}).get("fingerprint")
        if now == before:
            store.set_channel(channel, value)
    return now


def _verdict(before: str | None, challenger: str, gain: str, duel: Duel | None) -> tuple[bool, str]:
    if duel is None:
        return True, f"moved to {challenger}, its first model: {gain}"
    if duel.verdict == "promote":
        return (
            True,
            f"moved from {before} to {challenger}: against the base, {gain}; against the champion, {duel.reason}",
        )
    return False, f"kept at {before}, the challenger {challenger} is held: against the champion, {duel.reason}"
