"""Channels: which model each serves, its moves, and rollback."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from paraclip.storage.artifacts import ArtifactStore
from paraclip.tasks.results import Result, gather_result
from paraclip.tasks.run.run import Run
from paraclip_core.errors import ArtifactError, ConfigError, UnknownNameError

BY_RUN, BY_PROMOTION, BY_ROLLBACK = "run", "promotion", "rollback"
"""What moved a channel. A channel belongs to the runs of its name or to promotions; a rollback can move both kinds."""
MOVES = 20
"""Maximum moves in a channel's file."""
BY_HAND = "move the channel yourself with `paraclip promote --force`"


@dataclass(frozen=True)
class Move:
    """One move of a channel."""

    after: str
    """Fingerprint of the ``finetune`` artifact that the channel serves after the move."""
    before: str | None = None
    by: str = "unknown"
    """`run`, `promotion` or `rollback`; `unknown` for a manual change."""
    at: str | None = None
    """UTC, ISO 8601."""
    who: str | None = None
    """User and machine."""
    flow_run: str | None = None
    """Id of the Prefect flow run, if there was one."""
    verdict: str | None = None
    """The promotion gate's verdict, base against tuned."""
    reason: str | None = None
    stages: dict[str, str] = field(default_factory=dict)
    """Fingerprint of each stage of the model's run."""
    run: str | None = None
    """Name of the model's run; None for a manual change, after which any run may follow."""


def history(channel: Mapping[str, Any]) -> list[Move]:
    """The moves in a channel's file, oldest first; the last one led to the model that it serves."""
    moves = [Move(**entry) for entry in channel.get("history", ())]
    served = channel.get("fingerprint")
    if served and (not moves or moves[-1].after != served):
        # A file written by hand.
        moves.append(Move(served, stages=channel.get("stages", {})))
    return moves


def models(channel: Mapping[str, Any]) -> list[Move]:
    """The last move to each model of a channel's history: the current model first, then the latest to the earliest."""
    latest: dict[str, Move] = {}
    for move in reversed(history(channel)):
        latest.setdefault(move.after, move)
    return list(latest.values())


def existing_channel(store: ArtifactStore, name: str) -> dict[str, Any]:
    """The contents of a channel's file."""
    channel = store.channel(name)
    if channel is None:
        names = ", ".join(store.channels()) or "none"
        raise UnknownNameError(f"no channel under {store.location} is named {name!r}; there are {names}")
    if not channel.get("fingerprint"):
        raise ArtifactError(f"the channel {name!r} under {store.location} names no model; restore or delete its file")
    return channel


def withdrawn(channel: Mapping[str, Any], fingerprint: str) -> Move | None:
    """The rollback that moved a channel away from this model, if no later move returned to it."""
    for move in reversed(history(channel)):
        if move.after == fingerprint:
            return None
        if move.by == BY_ROLLBACK and move.before == fingerprint:
            return move
    return None


def moved(
    channel: Mapping[str, Any] | None,
    stages: Mapping[str, str],
    verdict: str | None,
    by: str,
    reason: str | None = None,
    run: str | None = None,
) -> dict[str, Any]:
    """The contents of a channel's file after a move: the move is added, unless the channel serves this model already.

    In that case its last move becomes one to the model of `run`, with its latest verdict. The caller holds
    :meth:`ArtifactStore.channel_lock` from reading `channel` to setting the result.
    """
    channel = channel or {}
    before, after = channel.get("fingerprint"), stages["finetune"]
    moves = history(channel)
    if after != before:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        moves.append(Move(after, before, by, now, _who(), _flow_run(), verdict, reason, dict(stages), run))
    else:
        moves[-1] = replace(moves[-1], run=run, stages=dict(stages), verdict=verdict, reason=reason)
    facts = {"before": moves[-1].before, "reason": moves[-1].reason}
    return {
        "stage": "finetune",
        "fingerprint": after,
        "verdict": verdict,
        "stages": dict(stages),
        "moved_by": channel.get("moved_by", BY_PROMOTION) if by == BY_ROLLBACK else by,
        **{name: value for name, value in facts.items() if value is not None},
        "history": [asdict(move) for move in moves[-MOVES:]],
    }


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _flow_run() -> str | None:
    if "prefect" not in sys.modules:
        return None
    from prefect.runtime import flow_run

    return flow_run.id


def _by_this_run(move: Move) -> bool:
    return move.flow_run is not None and move.flow_run == _flow_run()


def moved_before_retry(channel: Mapping[str, Any], challenger: str) -> Move | None:
    """The channel's last move, if it is an earlier attempt of this Prefect flow run that promoted the challenger."""
    moves = history(channel)
    last = moves[-1] if moves else None
    return last if last and last.by == BY_PROMOTION and last.after == challenger and _by_this_run(last) else None


def check_run_name(name: str, store: ArtifactStore) -> None:
    """Check before a run that it may move the channel of its name."""
    if (store.channel(name) or {}).get("moved_by") == BY_PROMOTION:
        raise ConfigError(
            f"{name!r} is a channel that only a promotion moves, and a run of this name would move it whatever its "
            f"verdict; give the run another name with --set name=…"
        )


def check_channel(run: str, channel: str, store: ArtifactStore, force: bool = False) -> None:
    """Check before a run that its verdict can move `channel`; with `force`, also a channel of another run."""
    current = store.channel(channel) or {}
    if channel == run:
        raise ConfigError(
            f"the run and the channel are both named {channel!r}, and a run moves the channel of its own name whatever "
            f"its verdict; give the run another name, or name another channel"
        )
    if current.get("moved_by") == BY_RUN:
        raise ConfigError(
            f"the channel {channel!r} has the name of a run, and so follows every such run, whatever its verdict; name "
            f"another channel (or delete {channel}.json under channels/, if that run no longer exists)"
        )
    if not force and (other := of_another_run(current, run)):
        raise ConfigError(f"the channel {channel!r} {other}")


def of_another_run(channel: Mapping[str, Any], run: str) -> str | None:
    """What to know and do if a channel serves another run's model; None if it serves none as far as is known."""
    moves = history(channel)
    if not moves or moves[-1].run in (None, run):
        return None
    return (
        f"serves a model of the run {moves[-1].run!r} since {moves[-1].at}, which no model of the run {run!r} follows "
        f"by its verdict; name another channel, or, to give this one to {run!r}, {BY_HAND}"
    )


def record_result(run: Run, rows: Sequence[Mapping[str, Any]] | None = None) -> Result:
    """Gather the outcome (see :func:`gather_result`) and point the run's own channel at its model."""
    name, store = run.settings.name, run.store
    check_run_name(name, store)
    artifacts = run.artifacts()
    result = gather_result(run, artifacts, rows)
    if "finetune" in artifacts:
        stages = {stage: artifact.fingerprint for stage, artifact in artifacts.items()}
        reason = result.summary.get("reason")
        with store.channel_lock(name):
            check_run_name(name, store)
            store.set_channel(name, moved(store.channel(name), stages, result.verdict, BY_RUN, reason, name))
    return result


def rollback(store: ArtifactStore, name: str, to: str | None = None) -> dict[str, Any]:
    """Move a channel to the model before the current one, or to the one in its history that starts with `to`.

    A second rollback goes one model further back; a retried flow run does not.
    """
    existing_channel(store, name)
    with store.channel_lock(name):
        channel = existing_channel(store, name)
        last = history(channel)[-1]
        if last.by == BY_ROLLBACK and _by_this_run(last):
            return _rolled_back(name, last.before, last.after)
        target = _earlier(name, channel) if to is None else _named(name, channel, to)
        decision = _rolled_back(name, last.after, target.after)
        if not decision["moved"]:
            return decision
        if store.peek("finetune", target.after) is None:
            raise ArtifactError(
                f"the model {target.after} is gone from {store.location}, so {name!r} stays as it is; restore it, or "
                "name another one with --to (`paraclip channel history` says which are there)"
            )
        stages = target.stages or {"finetune": target.after}
        value = moved(channel, stages, target.verdict, BY_ROLLBACK, decision["reason"], target.run)
        store.set_channel(name, value)
    return decision


def _rolled_back(name: str, before: str | None, after: str) -> dict[str, Any]:
    moves = before != after
    reason = f"rolled back from {before} to {after}" if moves else f"kept: it serves {after} already"
    return {"channel": name, "moved": moves, "reason": reason, "before": before, "after": after}


def _named(name: str, channel: Mapping[str, Any], to: str) -> Move:
    start = to.removeprefix("finetune/")
    matches = [move for move in models(channel) if start and move.after.startswith(start)]
    if len(matches) != 1:
        raise UnknownNameError(
            f"{to!r} matches {len(matches)} models that {name!r} has served, see `paraclip channel history`; "
            f"for another one {BY_HAND}"
        )
    return matches[0]


def _earlier(name: str, channel: Mapping[str, Any]) -> Move:
    """The move to the previous model; moves that a rollback undid do not count."""
    path: list[Move] = []
    for move in history(channel):
        if move.by == BY_ROLLBACK and any(earlier.after == move.after for earlier in path):
            while path[-1].after != move.after:
                path.pop()
        else:
            path.append(move)
    if len(path) < 2:
        raise ArtifactError(f"the channel {name!r} has served no model before {path[-1].after}; {BY_HAND}")
    return path[-2]
