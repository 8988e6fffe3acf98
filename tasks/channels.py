"""Which model a channel serves: a challenger against its champion, and whether it takes over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.files import read_json, write_json
from paraclip.storage.fingerprint import fingerprint
from paraclip.storage.parquet import read_table
from paraclip.tasks.history import BY_PROMOTION, BY_RUN, moved, withdrawn
from paraclip.tasks.results import Result, why
from paraclip.tasks.run.dag import run_stage
from paraclip.tasks.run.run import Node, Run, software_versions
from paraclip.tasks.stages.evaluate import EVALUATE
from paraclip_core.errors import ArtifactError, ConfigError
from paraclip_core.evaluation.base import Measured
from paraclip_core.evaluation.compare import Comparison, Outcome, Row, Verdict, compare, judge_challenger
from paraclip_core.evaluation.run import from_table
from paraclip_core.progress import Progress, silent

BY_HAND = "move the channel yourself with `paraclip promote --force`"


@dataclass(frozen=True)
class Challenge:
    """What came of a challenge."""

    verdict: Verdict
    reason: str
    comparison: Comparison | None = None
    """The champion's figures as `base`, the challenger's as `tuned`; None where they cannot be compared."""


def challenge(run: Run, champion: str, evaluation: str, progress: Progress = silent) -> Challenge:
    """Whether a challenger (its ``evaluate`` artifact) may follow the champion (its ``finetune`` artifact)."""
    store = run.store
    challengers = store.find("evaluate", evaluation)
    if challengers is None:
        raise ArtifactError(f"the artifact evaluate/{evaluation} is gone; run the same settings again")
    model = store.peek("finetune", champion)
    if model is None:
        return Challenge("hold", f"the champion {champion} is gone from {store.location}; restore it, or {BY_HAND}")
    rival = store.peek("finetune", challengers.manifest.inputs["finetune"])
    towers = _tower(model), _tower(rival)
    if towers[0] != towers[1]:
        return Challenge(
            "hold",
            f"the champion {champion} has image tower {towers[0]} and the challenger {towers[1]}, so image indexes of "
            f"one are useless to the other; build them anew and {BY_HAND}, or tune the champion's base",
        )
    champions = store.download(run_stage(_node(run, challengers, champion), run, progress))
    rule = partial(judge_challenger, champion=_rows(champions), challenger=_rows(challengers))
    comparison = compare(_outcomes(champions, challengers), run.settings.evaluate, rule=rule)
    return Challenge(comparison.verdict, comparison.reason, comparison)


def challenge_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row for each benchmark and metric: champion, challenger, delta and its interval."""
    return [
        {
            "benchmark": row.benchmark,
            "metric": row.metric,
            "champion": row.base,
            "challenger": row.tuned,
            "delta": row.delta,
            "low": row.low,
            "high": row.high,
        }
        for row in comparison.rows
    ]


def _tower(model: Artifact | None) -> str | None:
    return None if model is None else model.manifest.metrics.get("image_tower_hash_after")


def _node(run: Run, evaluation: Artifact, model: str) -> Node:
    """The same evaluation of another model."""
    manifest = evaluation.manifest
    inputs = {**manifest.inputs, "finetune": model}
    name = fingerprint(EVALUATE.name, manifest.stage_version, manifest.options, inputs)
    draft = Draft(EVALUATE.name, name, manifest.stage_version, inputs, manifest.options, software_versions())
    return Node(EVALUATE, draft)


def _outcomes(champions: Artifact, challengers: Artifact) -> list[Outcome]:
    kinds = {row.benchmark: row.kind for row in _rows(challengers)}
    return [
        Outcome(name, kind, _tuned(champions.path, name), _tuned(challengers.path, name))
        for name, kind in kinds.items()
    ]


def _rows(evaluation: Artifact) -> list[Row]:
    """A model's figures against its base."""
    return [Row(**row) for row in read_json(evaluation.path / "comparison.json")["rows"]]


def _tuned(folder: Path, benchmark: str) -> Measured:
    return from_table(read_table(folder / "samples" / f"{benchmark}.parquet"))[1]


def check_channel(run: str, channel: str, store: ArtifactStore) -> None:
    """See before a run that `channel` can be moved by its verdict."""
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
    run: Run,
    channel: str,
    result: Result,
    progress: Progress = silent,
    force: bool = False,
    approve: Callable[[Mapping[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """Move `channel` to the run's model if that is better than its base and no worse than what the channel serves.

    The decision is returned, and kept as ``results/<run>/promotion.json``.

    Args:
        run: the finished run.
        channel: the channel.
        result: its outcome.
        progress: told how far the champion's evaluation is, where it has to be made.
        force: move it in any case.
        approve: given the decision to move it before it is moved, and raises where it is not to be.

    Returns:
        `moved`, `reason`, the fingerprints `before` and `after`, and, where both were compared, a row for each figure
        in `against_champion`.
    """
    store = run.store
    current = store.channel(channel) or {}
    stages = {row["stage"]: row["fingerprint"] for row in result.stages}
    before, challenger = current.get("fingerprint"), stages["finetune"]
    moves, reason, outcome = _compare(run, current, stages, result, progress, force)
    decision = {
        "channel": channel,
        "moved": moves,
        "reason": reason,
        "before": before,
        "after": challenger,
        "against_champion": challenge_rows(outcome.comparison) if outcome and outcome.comparison else [],
    }
    if moves:
        if approve is not None:
            approve(decision)
        now = _move(store, channel, before, stages, result.verdict, reason)
        if now != before:
            reason = f"kept at {now}, another promotion moved it there meanwhile; promote {challenger} again"
            decision |= {"moved": False, "reason": reason}
    write_json(store.root / "results" / result.name / "promotion.json", decision)
    return decision


def _compare(
    run: Run, current: Mapping[str, Any], stages: Mapping[str, str], result: Result, progress: Progress, force: bool
) -> tuple[bool, str, Challenge | None]:
    """Whether the channel moves, and why, and the comparison with what it serves, where there was one."""
    before, challenger = current.get("fingerprint"), stages["finetune"]
    if challenger == before:
        return False, "kept: the challenger is the model that it serves already", None
    if force:
        return True, f"moved to {challenger} by hand", None
    if held := _held(current, challenger, result):
        return False, f"kept at {before or 'no model'}, the challenger {challenger} is held: {held}", None
    outcome = challenge(run, before, stages["evaluate"], progress) if before else None
    return *_verdict(before, challenger, why(result.summary), outcome), outcome


def _held(current: Mapping[str, Any], challenger: str, result: Result) -> str | None:
    """Why a challenger cannot take over whatever the champion is; None where it may."""
    if result.verdict != "promote":
        return why(result.summary)
    if left := withdrawn(current, challenger):
        return f"{left.who} rolled the channel back from it at {left.at}; if it is to serve again, {BY_HAND}"
    return None


def _move(
    store: ArtifactStore, channel: str, before: str | None, stages: Mapping[str, str], verdict: str | None, reason: str
) -> str | None:
    """Move a channel that still serves `before`, and leave one that does not; what it served, either way."""
    with store.channel_lock(channel):
        # The champion's evaluation may take an hour, in which another promotion or a rollback can be faster.
        current = store.channel(channel) or {}
        now = current.get("fingerprint")
        if now == before:
            store.set_channel(channel, moved(current, stages, verdict, BY_PROMOTION, reason))
    return now


def _verdict(before: str | None, challenger: str, gain: str, outcome: Challenge | None) -> tuple[bool, str]:
    if outcome is None:
        return True, f"moved to {challenger}, its first model: {gain}"
    if outcome.verdict == "promote":
        return (
            True,
            f"moved from {before} to {challenger}: against the base, {gain}; against the champion, {outcome.reason}",
        )
    return False, f"kept at {before}, the challenger {challenger} is held: against the champion, {outcome.reason}"
