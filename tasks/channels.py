"""Which model a channel serves: its file, its moves, a challenger against its champion, and the way back; and which
artifacts no channel needs any more."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.files import read_json, storage_error, write_json
from paraclip.storage.fingerprint import fingerprint
from paraclip.storage.parquet import read_table
from paraclip.tasks.models import EMBEDDED, find_tuned, of_own_base
from paraclip.tasks.results import Result, gather_result, why
from paraclip.tasks.run.dag import run_stage
from paraclip.tasks.run.run import Node, Run, software_versions
from paraclip.tasks.stages.evaluate import EVALUATE
from paraclip_core.errors import ArtifactError, ConfigError, LockedError, UnknownModelError, UnknownNameError
from paraclip_core.evaluation.base import Measured
from paraclip_core.evaluation.compare import Comparison, Outcome, Row, compare, judge_challenger
from paraclip_core.evaluation.outcomes import from_table
from paraclip_core.progress import Progress, silent

BY_RUN, BY_PROMOTION, BY_ROLLBACK = "run", "promotion", "rollback"
"""What moves a channel. It belongs to the runs of its name or to promotions; a rollback moves either's."""
MOVES = 20
"""Moves that a channel's file keeps."""
KEPT_MODELS = 3
"""Models that `paraclip artifacts gc` keeps for each channel, besides the one that it serves."""
BY_HAND = "move the channel yourself with `paraclip promote --force`"


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
    run: str | None = None
    """Name of the model's run; None in a file that was written before it was noted, and then any run may follow."""


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
    for move in reversed(history(channel)):
        latest.setdefault(move.after, move)
    return list(latest.values())


def moved(
    channel: Mapping[str, Any] | None,
    stages: Mapping[str, str],
    verdict: str | None,
    by: str,
    reason: str | None = None,
    run: str | None = None,
) -> dict[str, Any]:
    """What a channel's file holds after a move: a history longer by it, unless the channel serves this model already.

    Then its last move becomes one to the model of `run`. The caller holds :meth:`ArtifactStore.channel_lock` from
    reading `channel` to setting the result. `stages` has the fingerprint of each stage of the model's run, and `run`
    is its name.
    """
    channel = channel or {}
    before, after = channel.get("fingerprint"), stages["finetune"]
    moves = history(channel)
    if after != before:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        moves.append(Move(after, before, by, now, _who(), _flow_run(), verdict, reason, dict(stages), run))
    elif run is not None:
        moves[-1] = replace(moves[-1], run=run, stages=dict(stages))
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


def check_run_name(name: str, store: ArtifactStore) -> None:
    """See before a run that it may keep its model under its name."""
    if (store.channel(name) or {}).get("moved_by") == BY_PROMOTION:
        raise ConfigError(
            f"{name!r} is a channel that only a promotion moves, and a run of this name would move it whatever its "
            f"verdict; give the run another name, with --set name=…"
        )


def check_channel(run: str, channel: str, store: ArtifactStore, force: bool = False) -> None:
    """See before a run that `channel` can be moved by its verdict, or with `force` by hand, whichever run it is of."""
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
    if not force and (other := _of_another_run(current, run, store)):
        raise ConfigError(f"the channel {channel!r} {other}")


def _of_another_run(channel: Mapping[str, Any], run: str, store: ArtifactStore) -> str | None:
    """What to know and do if a channel serves a model of another run; None if it serves none that is known."""
    moves = history(channel)
    other = _run_of(moves[-1], store) if moves else None
    if other in (None, run):
        return None
    return (
        f"serves a model of the run {other!r} since {moves[-1].at}, which no model of the run {run!r} follows "
        f"by its verdict; name another channel, or, to give this one to {run!r}, {BY_HAND}"
    )


def _run_of(move: Move, store: ArtifactStore) -> str | None:
    """The run of a move's model; of a move that an earlier release wrote, the name in the run's report."""
    report = store.peek("report", move.stages["report"]) if move.run is None and "report" in move.stages else None
    return move.run if report is None else report.manifest.options.get("name")


def record_result(run: Run, rows: Sequence[Mapping[str, Any]] | None = None) -> Result:
    """Gather the outcome, see :func:`gather_result`, and point the run's own channel at its model."""
    name, store = run.settings.name, run.store
    check_run_name(name, store)
    artifacts = run.artifacts()
    result = gather_result(run, artifacts, rows)
    if "finetune" in artifacts:
        stages = {stage: artifact.fingerprint for stage, artifact in artifacts.items()}
        reason = why(result.summary) if result.summary else None
        with store.channel_lock(name):
            check_run_name(name, store)
            store.set_channel(name, moved(store.channel(name), stages, result.verdict, BY_RUN, reason, name))
    return result


def decide(
    run: Run,
    channel: str,
    result: Result,
    progress: Progress = silent,
    force: bool = False,
    approve: Callable[[Mapping[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """Move `channel` to the run's model if that is better than its base and no worse than what the channel serves.

    With `force` it is moved in any case, and is this run's from then on. `approve` gets the decision to move it before
    it is moved, and raises where it is not to be. The decision is kept as ``results/<run>/promotion.json``: `moved`,
    `reason`, the fingerprints `before` and `after`, and, where both were compared, a row for each figure in
    `against_champion`.
    """
    store = run.store
    current = store.channel(channel) or {}
    stages = {row["stage"]: row["fingerprint"] for row in result.stages}
    before, challenger = current.get("fingerprint"), stages["finetune"]
    moves, reason, comparison = _judge(run, current, stages, result, progress, force)
    figures = [
        {"benchmark": row.benchmark, "metric": row.metric, "champion": row.base, "challenger": row.tuned}
        | {"delta": row.delta, "low": row.low, "high": row.high}
        for row in (comparison.rows if comparison else ())
    ]
    decision = {"channel": channel, "moved": moves, "reason": reason, "before": before, "after": challenger}
    decision["against_champion"] = figures
    if moves:
        if approve is not None:
            approve(decision)
        with store.channel_lock(channel):
            # The champion's evaluation may take an hour, in which another promotion or a rollback can be faster.
            current = store.channel(channel) or {}
            now = current.get("fingerprint")
            if now == before:
                value = moved(current, stages, result.verdict, BY_PROMOTION, reason, result.name)
                store.set_channel(channel, value)
            else:
                reason = f"kept at {now}, another promotion moved it there meanwhile; promote {challenger} again"
                decision |= {"moved": False, "reason": reason}
    write_json(store.root / "results" / result.name / "promotion.json", decision)
    return decision


def _judge(
    run: Run, current: Mapping[str, Any], stages: Mapping[str, str], result: Result, progress: Progress, force: bool
) -> tuple[bool, str, Comparison | None]:
    """Whether the channel moves, and why, and the comparison with what it serves, where there was one."""
    before, challenger = current.get("fingerprint"), stages["finetune"]
    if challenger == before:
        if force and history(current)[-1].run != result.name:
            return True, f"given to the run {result.name!r} by hand; it serves {challenger} already", None
        return False, "kept: the challenger is the model that it serves already", None
    if force:
        return True, f"moved to {challenger} by hand", None
    held, comparison = f"kept at {before or 'no model'}, the challenger {challenger} is held: ", None
    if result.verdict != "promote":
        return False, held + why(result.summary), None
    if other := _of_another_run(current, result.name, run.store):
        # Both were made at once, when the channel had no model.
        return False, f"{held}the channel {other}", None
    if left := withdrawn(current, challenger):
        again = f"if it is to serve again, {BY_HAND}"
        return False, f"{held}{left.who} rolled the channel back from it at {left.at}; {again}", None
    if before is None:
        return True, f"moved to {challenger}, its first model: {why(result.summary)}", None
    verdict, reason, comparison = _against_champion(run, history(current)[-1], stages["evaluate"], progress)
    if verdict != "promote":
        return False, f"{held}against the champion, {reason}", comparison
    gain = f"against the base, {why(result.summary)}; against the champion, {reason}"
    return True, f"moved from {before} to {challenger}: {gain}", comparison


def _against_champion(
    run: Run, champion: Move, evaluation: str, progress: Progress
) -> tuple[str, str, Comparison | None]:
    """Verdict and reason on a challenger (its ``evaluate`` artifact) against the champion (the last move to it).

    Both are measured on the challenger's queries and images, and the gate holds each against its own base. The
    comparison has the champion's figures as `base`, the challenger's as `tuned`; None where they are incomparable.
    """
    challengers = run.store.expect("evaluate", evaluation, "the challenger's evaluation")
    promoted, rows = _promoted_by(champion, run.store), _rows(challengers)
    benchmarks = {row.benchmark: row.kind for row in rows}
    if lacking := {(row.benchmark, row.kind) for row in promoted} - set(benchmarks.items()):
        names = ", ".join(f"{name} ({kind})" for name, kind in sorted(lacking))
        by = f"the champion {champion.after} was promoted by {names}, which the challenger was not measured on"
        return "hold", f"{by}; add what is missing to evaluate.benchmarks, or {BY_HAND}", None
    champions = _measured(run, champion, challengers, progress)
    if isinstance(champions, str):
        return "hold", champions, None
    rule = partial(judge_challenger, champion=promoted, challenger=rows)
    outcomes = [
        Outcome(name, kind, _tuned(champions.path, name), _tuned(challengers.path, name))
        for name, kind in benchmarks.items()
    ]
    comparison = compare(outcomes, run.settings.evaluate, rule=rule)
    return comparison.verdict, comparison.reason, comparison


def _measured(run: Run, champion: Move, challengers: Artifact, progress: Progress) -> Artifact | str:
    """The champion's evaluation on the queries and images of the challenger's; why the two are incomparable if so."""
    store = run.store
    tuned, challenger = (
        store.peek("finetune", name) for name in (champion.after, challengers.manifest.inputs["finetune"])
    )
    if tuned is None:
        return f"the champion {champion.after} is gone from {store.location}; restore it, or {BY_HAND}"
    towers = [one and one.manifest.metrics.get("image_tower_hash_after") for one in (tuned, challenger)]
    if towers[0] != towers[1]:
        return (
            f"the champion {champion.after} has image tower {towers[0]} and the challenger {towers[1]}, so image "
            f"indexes of one are useless to the other; build them anew and {BY_HAND}, or tune the champion's base"
        )
    node = _evaluation_of(tuned, champion.stages, challengers, store)
    if (evaluation := store.peek(node.name, node.fingerprint)) is None:
        if (beside := _beside_base_of(tuned, run)) is None:
            return (
                f"the base that the champion {champion.after} was tuned from is gone or was changed since, so the "
                f"champion cannot be measured; restore it, or {BY_HAND}"
            )
        evaluation = run_stage(node, beside, progress)
    return store.download(evaluation)


def _evaluation_of(tuned: Artifact, stages: Mapping[str, str], evaluation: Artifact, store: ArtifactStore) -> Node:
    """The same evaluation of another model, with the base and the control of that model's own run (`stages`).

    A control that is gone is left out: another model's says nothing.
    """
    manifest = evaluation.manifest
    own = {"finetune": tuned.fingerprint, "bootstrap": tuned.manifest.inputs.get("bootstrap")}
    if "control" in manifest.inputs:
        control = stages.get("control")
        own["control"] = control if control and store.peek("control", control) else None
    inputs = {name: value for name, value in {**manifest.inputs, **own}.items() if value is not None}
    name = fingerprint(EVALUATE.name, manifest.stage_version, manifest.options, inputs)
    draft = Draft(EVALUATE.name, name, manifest.stage_version, inputs, manifest.options, software_versions())
    return Node(EVALUATE, draft)


def _beside_base_of(tuned: Artifact, run: Run) -> Run | None:
    """The run with this model's base in place of its own; None if that base is gone or was changed since."""
    base = _base_of(tuned, run)
    if base is None:
        return None
    model = run.settings.model.model_copy(update={"base": base})
    other = Run(run.settings.model_copy(update={"model": model}), run.store)
    # What ends the run ends the measurement, too.
    other.stop = run.stop
    return other


def _base_of(tuned: Artifact, run: Run) -> str | None:
    if bootstrap := tuned.manifest.inputs.get("bootstrap"):
        return EMBEDDED if run.store.peek("bootstrap", bootstrap) else None
    # Where it lay then, or where the run has the same files.
    for place in (None, run.settings.model.base):
        with suppress(UnknownModelError):
            return find_tuned(f"finetune/{tuned.fingerprint}", run.store, place)[1]
    return None


def _promoted_by(champion: Move, store: ArtifactStore) -> list[Row]:
    """A champion's figures against its own base in the evaluation that it was promoted by; none if that is gone."""
    name, tuned = champion.stages.get("evaluate"), store.peek("finetune", champion.after)
    evaluation = store.find("evaluate", name) if name else None
    if evaluation is None or tuned is None or not of_own_base(evaluation, tuned):
        return []
    return _rows(evaluation)


def _rows(evaluation: Artifact) -> list[Row]:
    """A model's figures against its base."""
    return [Row(**row) for row in read_json(evaluation.path / "comparison.json")["rows"]]


def _tuned(folder: Path, benchmark: str) -> Measured:
    return from_table(read_table(folder / "samples" / f"{benchmark}.parquet"))[1]


def existing_channel(store: ArtifactStore, name: str) -> dict[str, Any]:
    """What a channel's file holds."""
    channel = store.channel(name)
    if channel is None:
        names = ", ".join(store.channels()) or "none"
        raise UnknownNameError(f"no channel under {store.location} is named {name!r}; there are {names}")
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
    """Move a channel to the model before the one that it serves, or to the one of its history that begins with `to`.

    A second rollback goes one model further back. A flow run that is retried does not.
    """
    existing_channel(store, name)
    with store.channel_lock(name):
        channel = existing_channel(store, name)
        last = history(channel)[-1]
        if last.by == BY_ROLLBACK and last.flow_run and last.flow_run == _flow_run():
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
            f"{to!r} begins {len(matches)} models that {name!r} has served, see `paraclip channel history`; "
            f"for another one {BY_HAND}"
        )
    return matches[0]


def _earlier(name: str, channel: Mapping[str, Any]) -> Move:
    """The model before: moves that a rollback undid do not count."""
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


Key = tuple[str, str]
"""Stage and fingerprint."""


@dataclass(frozen=True)
class Garbage:
    """A folder that may go, or would if nobody were using it."""

    stage: str
    fingerprint: str
    path: Path
    size: int
    """Bytes."""
    artifact: Artifact | None
    """None for unfinished work."""
    used: str = ""
    """Who is using it."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        place = {"why": self.used} if self.used else {"path": str(self.path), "bytes": self.size}
        return {"stage": self.stage, "fingerprint": self.fingerprint, **place}


@dataclass(frozen=True)
class Collected:
    """What may go, and what a living process keeps from going."""

    garbage: list[Garbage]
    skipped: list[Garbage]
    young: int
    """Artifacts that stay for their age alone, those that they were made from included."""


def collect(
    store: ArtifactStore, keep_days: float = 0.0, unfinished: bool = False, keep_models: int = KEPT_MODELS
) -> Collected:
    """Artifacts that belong to no run of a channel's latest models, and that no kept artifact was made from.

    What a stage or a run in progress on this machine needs, and what is younger than `keep_days`, stays with everything
    that it was made from; `keep_models` of each channel's history stay besides the one that it serves. With
    `unfinished` work that nobody is writing counts as well.
    """
    # First who makes what: what is not being made any more is then in the list.
    holders = store.holders()
    artifacts = {(artifact.stage, artifact.fingerprint): artifact for artifact in store.list()}
    used = {(holder.stage, holder.fingerprint): holder.description for holder in holders}
    for holder in holders:
        # Unfinished work of a run's later stages, too.
        for key in {*holder.reads.items(), *_with_origins(holder.reads.items(), artifacts)}:
            used.setdefault(key, holder.description)
    young = datetime.now(UTC) - timedelta(days=keep_days)
    needed = _of_channels(store, keep_models)
    recent = [key for key, a in artifacts.items() if datetime.fromisoformat(a.manifest.created) > young]
    staying = _with_origins([*needed, *recent], artifacts)
    garbage = [
        Garbage(*key, artifact.path, artifact.manifest.size(), artifact, used.get(key, ""))
        for key, artifact in artifacts.items()
        if key not in staying
    ]
    garbage += [
        Garbage(stage, name, path, _size(path), None, used.get((stage, name), ""))
        for stage, name, path in store.unfinished()
        # A commit that was killed at its very end leaves work that nothing goes on with.
        if unfinished or (stage, name) in artifacts
    ]
    skipped = sorted((one for one in garbage if one.used), key=lambda one: (one.stage, one.fingerprint))
    return Collected(
        [one for one in garbage if not one.used], skipped, len(staying) - len(_with_origins(needed, artifacts))
    )


def remove(garbage: Iterable[Garbage], store: ArtifactStore) -> None:
    """Delete what was collected, but for unfinished work that somebody has gone on with since."""
    for one in garbage:
        try:
            if one.artifact is not None:
                store.remove(one.artifact)
            else:
                with suppress(LockedError):
                    store.discard(one.stage, one.fingerprint)
        except OSError as error:
            raise storage_error(error, one.path) from error


def _with_origins(start: Iterable[Key], artifacts: Mapping[Key, Artifact]) -> set[Key]:
    """The artifacts with these names, and all that they were made from."""
    keys, reached = list(start), set[Key]()
    while keys:
        key = keys.pop()
        if key not in reached and key in artifacts:
            reached.add(key)
            keys += artifacts[key].manifest.inputs.items()
    return reached


def _of_channels(store: ArtifactStore, keep_models: int) -> list[Key]:
    keys: list[Key] = []
    for channel in store.channels().values():
        keys += [*channel.get("stages", {}).items(), (channel.get("stage", ""), channel.get("fingerprint", ""))]
        for move in models(channel)[1 : 1 + keep_models]:
            keys += [*move.stages.items(), ("finetune", move.after)]
    return keys


def _size(folder: Path) -> int:
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            # A stage that is at work renames and deletes files meanwhile.
            with suppress(FileNotFoundError):
                size += Path(place, name).stat().st_size
    return size
