"""Promotion: decides whether a challenger replaces a channel's champion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.files import read_json, write_json
from paraclip.storage.fingerprint import fingerprint
from paraclip.storage.parquet import read_table
from paraclip.tasks.channels import (
    BY_HAND,
    BY_PROMOTION,
    Move,
    history,
    moved,
    moved_before_retry,
    of_another_run,
    withdrawn,
)
from paraclip.tasks.models import BUILT_IN, find_tuned, of_own_base
from paraclip.tasks.results import Result, why
from paraclip.tasks.run.execute import run_stage
from paraclip.tasks.run.run import Node, Run, software_versions
from paraclip.tasks.stages.evaluate import EVALUATE
from paraclip_core.errors import UnknownModelError
from paraclip_core.evaluation.base import Measured
from paraclip_core.evaluation.compare import Comparison, Outcome, Row, compare, gate_challenger
from paraclip_core.evaluation.outcomes import from_table
from paraclip_core.progress import Progress, silent


def decide(
    run: Run,
    channel: str,
    result: Result,
    progress: Progress = silent,
    force: bool = False,
    approve: Callable[[Mapping[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """Move `channel` to the run's model if it is better than its base and no worse than the channel's current model.

    With `force`, the channel is moved in any case and belongs to this run from then on. `approve` is called with the
    decision before the move, and raises to prevent it. The decision is stored as ``results/<run>/promotion.json``:
    `moved`, `reason`, the fingerprints `before` and `after`, and, if both were compared, a row for each figure in
    `against_champion`.
    """
    store, stored = run.store, run.store.root / "results" / result.name / "promotion.json"
    current = store.channel(channel) or {}
    stages = {row["stage"]: row["fingerprint"] for row in result.stages}
    before, challenger = current.get("fingerprint"), stages["finetune"]
    if move := moved_before_retry(current, challenger):
        # Killed since: what follows from the move, such as its event, is still to be done.
        decision = {"channel": channel, "moved": True, "reason": move.reason, "before": move.before}
        decision |= {"after": challenger, "against_champion": []}
        write_json(stored, decision)
        return decision
    moves, reason, comparison = _apply(run, current, stages, result, progress, force)
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
            # The champion's evaluation may take an hour; another promotion or a rollback may finish first.
            current = store.channel(channel) or {}
            now = current.get("fingerprint")
            if now == before:
                value = moved(current, stages, result.verdict, BY_PROMOTION, reason, result.name)
                store.set_channel(channel, value)
            else:
                reason = f"kept at {now}, another promotion moved it there meanwhile; promote {challenger} again"
                decision |= {"moved": False, "reason": reason}
    write_json(stored, decision)
    return decision


def _apply(
    run: Run, current: Mapping[str, Any], stages: Mapping[str, str], result: Result, progress: Progress, force: bool
) -> tuple[bool, str, Comparison | None]:
    """Whether the channel moves, why, and the comparison with the model that it serves, if there was one."""
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
    if other := of_another_run(current, result.name):
        # Both runs ran concurrently, when the channel had no model.
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

    Both are measured on the challenger's queries and images, and the gate compares each with its own base. The
    comparison has the champion's figures as `base` and the challenger's as `tuned`; None if they are incomparable.
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
    rule = partial(gate_challenger, champion=promoted, challenger=rows)
    outcomes = [
        Outcome(name, kind, _tuned(champions.path, name), _tuned(challengers.path, name))
        for name, kind in benchmarks.items()
    ]
    comparison = compare(outcomes, run.settings.evaluate, rule=rule)
    return comparison.verdict, comparison.reason, comparison


def _measured(run: Run, champion: Move, challengers: Artifact, progress: Progress) -> Artifact | str:
    """The champion's evaluation on the challenger's queries and images, or why the two are incomparable."""
    store = run.store
    tuned, challenger = (
        store.peek("finetune", name) for name in (champion.after, challengers.manifest.inputs["finetune"])
    )
    if tuned is None:
        return f"the champion {champion.after} is gone from {store.location}; restore it, or {BY_HAND}"
    encoders = [one and one.manifest.metrics.get("image_encoder_hash_after") for one in (tuned, challenger)]
    if encoders[0] != encoders[1]:
        return (
            f"the champion {champion.after} has image encoder {encoders[0]} and the challenger {encoders[1]}, so image "
            f"indexes of one are useless to the other; rebuild them and {BY_HAND}, or tune the champion's base"
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
    """The same evaluation for another model, with the base and the control of that model's own run (`stages`).

    A deleted control is left out: another model's control says nothing.
    """
    manifest = evaluation.manifest
    own = {"finetune": tuned.fingerprint, "built_in_base": tuned.manifest.inputs.get("built_in_base")}
    if "control" in manifest.inputs:
        control = stages.get("control")
        own["control"] = control if control and store.peek("control", control) else None
    inputs = {name: value for name, value in {**manifest.inputs, **own}.items() if value is not None}
    name = fingerprint(EVALUATE.name, manifest.stage_version, manifest.options, inputs)
    draft = Draft(EVALUATE.name, name, manifest.stage_version, inputs, manifest.options, software_versions())
    return Node(EVALUATE, draft)


def _beside_base_of(tuned: Artifact, run: Run) -> Run | None:
    """The run with this model's base in place of its own; None if that base is gone or has changed."""
    base = _base_of(tuned, run)
    if base is None:
        return None
    model = run.settings.model.model_copy(update={"base": base})
    other = Run(run.settings.model_copy(update={"model": model}), run.store)
    # Stopping the run also stops the measurement.
    other.stop = run.stop
    return other


def _base_of(tuned: Artifact, run: Run) -> str | None:
    if base := tuned.manifest.inputs.get("built_in_base"):
        return BUILT_IN if run.store.peek("built_in_base", base) else None
    # At its former location, or where the run has the same files.
    for place in (None, run.settings.model.base):
        with suppress(UnknownModelError):
            return find_tuned(f"finetune/{tuned.fingerprint}", run.store, place)[1]
    return None


def _promoted_by(champion: Move, store: ArtifactStore) -> list[Row]:
    """A champion's figures against its own base in the evaluation that promoted it; empty if that is gone."""
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
