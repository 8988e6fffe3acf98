"""What a channel's file holds: the model that it serves, and the moves that led there."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from paraclip.storage.artifacts import SOURCE, Artifact, ArtifactStore
from paraclip_core.errors import ArtifactError, UnknownNameError

BY_RUN, BY_PROMOTION, BY_ROLLBACK = "run", "promotion", "rollback"
"""What moves a channel. It belongs to the runs of its name or to promotions; a rollback moves either's."""
MOVES = 20
"""Moves that a channel's file keeps."""
KEPT_MODELS = 3
"""Models that `paraclip artifacts gc` keeps for each channel, besides the one that it serves."""


@dataclass(frozen=True)
class Move:
    """One move of a channel."""

    after: str
    """Fingerprint of the ``finetune`` artifact that it serves from then on."""
    before: str | None = None
    by: str = "unknown"
    """`run`, `promotion` or `rollback`; `unknown` for what was done by hand."""
    at: str | None = None
    """UTC, ISO 8601."""
    who: str | None = None
    """User and machine."""
    flow_run: str | None = None
    """Id of the Prefect flow run, where there was one."""
    verdict: str | None = None
    """The gate's, base against tuned."""
    reason: str | None = None
    stages: dict[str, str] = field(default_factory=dict)
    """Fingerprint of each stage of the model's run."""


def history(channel: Mapping[str, Any]) -> list[Move]:
    """The moves that a channel's file holds, the oldest first; the last one led to the model that it serves."""
    moves = [Move(**entry) for entry in channel.get("history", ())]
    served = channel.get("fingerprint")
    if served and (not moves or moves[-1].after != served):
        # A file that was written by hand.
        moves.append(Move(served, stages=channel.get("stages", {})))
    return moves


def models(channel: Mapping[str, Any]) -> list[Move]:
    """The last move to each model of a channel's history, the model that it serves first, then from late to early."""
    latest: dict[str, Move] = {}
    for move in reversed(_with_first(channel)):
        latest.setdefault(move.after, move)
    return list(latest.values())


def _with_first(channel: Mapping[str, Any]) -> list[Move]:
    """The history, and before it the model that its oldest move left."""
    moves = history(channel)
    return [Move(moves[0].before), *moves] if moves and moves[0].before else moves


def moved(
    channel: Mapping[str, Any] | None,
    stages: Mapping[str, str],
    verdict: str | None,
    by: str,
    reason: str | None = None,
) -> dict[str, Any]:
    """What a channel's file holds after a move: a history longer by it, unless the channel serves this model already.

    The caller holds :meth:`ArtifactStore.channel_lock` from reading `channel` to setting the result. `stages` has the
    fingerprint of each stage of the model's run.
    """
    channel = channel or {}
    before, after = channel.get("fingerprint"), stages["finetune"]
    moves = history(channel)
    if after != before:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        moves.append(Move(after, before, by, now, _who(), _flow_run(), verdict, reason, dict(stages)))
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


def existing_channel(store: ArtifactStore, name: str) -> dict[str, Any]:
    """What a channel's file holds."""
    channel = store.channel(name)
    if channel is None:
        there = f"there are {', '.join(store.channels()) or 'none'}"
        raise UnknownNameError(f"no channel under {store.location} is named {name!r}; {there}")
    if not channel.get("fingerprint"):
        raise ArtifactError(f"the channel {name!r} under {store.location} names no model; restore or delete its file")
    return channel


def withdrawn(channel: Mapping[str, Any], fingerprint: str) -> Move | None:
    """The rollback that took a channel off this model, if no later move went back to it."""
    for move in reversed(history(channel)):
        if move.after == fingerprint:
            return None
        if move.by == BY_ROLLBACK and move.before == fingerprint:
            return move
    return None


def rollback(store: ArtifactStore, name: str, to: str | None = None) -> dict[str, Any]:
    """Move a channel to the model before the one that it serves, or to another one that is still there.

    A second rollback goes one model further back. A flow run that is retried does not. `to` is the start of the
    fingerprint of a model of its history, or of any other finished ``finetune`` artifact.
    """
    existing_channel(store, name)
    with store.channel_lock(name):
        channel = existing_channel(store, name)
        last = history(channel)[-1]
        if last.by == BY_ROLLBACK and last.flow_run and last.flow_run == _flow_run():
            return _decision(name, True, last.before, last.after)
        target = _target(store, name, channel, to)
        if target.after == last.after:
            return _decision(name, False, last.after, last.after)
        artifact = store.peek("finetune", target.after)
        if artifact is None:
            raise ArtifactError(_gone(store, name, channel, target.after))
        decision = _decision(name, True, last.after, target.after)
        stages = target.stages or _stages(store, artifact)
        store.set_channel(name, moved(channel, stages, target.verdict, BY_ROLLBACK, decision["reason"]))
    return decision


def _decision(name: str, has_moved: bool, before: str | None, after: str) -> dict[str, Any]:
    reason = f"rolled back from {before} to {after}" if has_moved else f"kept: it serves {after} already"
    return {"channel": name, "moved": has_moved, "reason": reason, "before": before, "after": after}


def _target(store: ArtifactStore, name: str, channel: Mapping[str, Any], to: str | None) -> Move:
    if to is None:
        return _earlier(name, channel)
    start = to.removeprefix("finetune/")
    matches = [move for move in models(channel) if start and move.after.startswith(start)]
    if len(matches) == 1:
        return matches[0]
    artifact = store.resolve(to, ("finetune",))
    if artifact.stage != "finetune":
        raise UnknownNameError(f"{to!r} is a {artifact.stage} artifact; expected finetune, the stage that makes models")
    return Move(artifact.fingerprint)


def _earlier(name: str, channel: Mapping[str, Any]) -> Move:
    """The model before: moves that a rollback undid do not count."""
    path: list[Move] = []
    for move in _with_first(channel):
        if move.by == BY_ROLLBACK and any(earlier.after == move.after for earlier in path):
            while path[-1].after != move.after:
                path.pop()
        else:
            path.append(move)
    if len(path) < 2:
        raise ArtifactError(f"the channel {name!r} has served no model before {path[-1].after}; name one with --to")
    return path[-2]


def _gone(store: ArtifactStore, name: str, channel: Mapping[str, Any], fingerprint: str) -> str:
    there = [move.after for move in models(channel)[1:] if store.peek("finetune", move.after) is not None]
    others = f"roll back with --to {' or '.join(there)}" if there else "no other model of its history is there"
    return f"the model {fingerprint} is gone from {store.location}, so {name!r} stays as it is; restore it, or {others}"


def _stages(store: ArtifactStore, artifact: Artifact) -> dict[str, str]:
    """A model's stages, by what it was made from."""
    stages, waiting = {artifact.stage: artifact.fingerprint}, [artifact]
    while waiting:
        inputs = waiting.pop().manifest.inputs.items()
        new = {name: value for name, value in inputs if not name.startswith(SOURCE) and name not in stages}
        stages |= new
        waiting += [upstream for item in new.items() if (upstream := store.peek(*item)) is not None]
    return stages
