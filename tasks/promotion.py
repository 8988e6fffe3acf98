"""Whether a challenger takes over a channel."""

from __future__ import annotations

from typing import Any

from paraclip_core.errors import ConfigError
from storage.artifacts import ArtifactStore
from tasks.results import Result, channel_value, why

__all__ = ["check_channel", "decide"]


def check_channel(run: str, channel: str, store: ArtifactStore) -> None:
    """See before a run that `channel` can be moved by its verdict.

    Raises:
        ConfigError: it is the run's own channel, which is moved by every run, whatever the verdict.
        ArtifactError: it cannot be a channel's name, or its file is damaged.
    """
    if channel == run:
        raise ConfigError(
            f"the channel {channel!r} has the name of the run, and so follows every run, promoted or held; "
            "give the run another name, or name another channel"
        )
    store.channel(channel)


def decide(store: ArtifactStore, channel: str, result: Result) -> dict[str, Any]:
    """Move `channel` to the run's model if the verdict is `promote`, and say what was done and why.

    Returns:
        `moved`, `reason`, and the fingerprints `before` and `after`.

    Raises:
        ArtifactError: an artifact of the run is gone, or the root cannot be written.
    """
    current = store.channel(channel)
    before = None if current is None else current.get("fingerprint")
    stages = {row["stage"]: row["fingerprint"] for row in result.stages}
    challenger = stages["finetune"]
    moved = False
    if challenger == before:
        reason = "kept: the challenger is the model that it serves already"
    elif result.verdict == "promote":
        store.set_channel(channel, channel_value(stages, result.verdict))
        moved, reason = True, f"moved to {challenger}: {why(result.summary)}"
    else:
        reason = f"kept at {before or 'no model'}, the challenger {challenger} is held: {why(result.summary)}"
    return {"channel": channel, "moved": moved, "reason": reason, "before": before, "after": challenger}
