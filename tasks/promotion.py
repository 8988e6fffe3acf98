"""Promotion: decides whether a challenger replaces a channel's champion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.files import read_json, write_json
from paraclip.storage.fingerprint import fingerprint
from paraclip.storage.parquet import parquet_files, read_table
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
from paraclip.tasks.results import Result
from paraclip.tasks.run.execute import run_stage
from paraclip.tasks.run.run import Node, Run, software_versions
from paraclip.tasks.stages.evaluate import EVALUATE, FIRST_IMAGES
from paraclip_core.errors import UnknownModelError
from paraclip_core.evaluation.base import Measured
from paraclip_core.evaluation.compare import Comparison, compare, rows_from_json
from paraclip_core.evaluation.outcomes import from_table
from paraclip_core.evaluation.rows import Outcome, Row, compared_rows
from paraclip_core.evaluation.verdict import AGAINST_CHAMPION
from paraclip_core.evaluation.verdict.evidence import Evidence, searched_images
from paraclip_core.evaluation.verdict.finding import Finding, from_json, line
from paraclip_core.evaluation.verdict.rules import churned
from paraclip_core.progress import Progress, silent
from paraclip_core.tables import DUCKDB


def decide(
    run: Run,
    channel: str,
    result: Result,
    progress: Progress = silent,
    force: bool = False,
    approve: Callable[[Mapping[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """Move `channel` to the run's model if it is better than its base and, by a step, than the channel's current model.

    With `force`, the channel is moved in any case and belongs to this run from then on. `approve` is called with the
    decision before the move, and raises to prevent it. The decision is stored as ``results/<run>/promotion.json``:
    `moved`, `findings` and the `reason` that they make, the fingerprints `before` and `after`, and, if both were
    compared, a row for each figure in `against_champion`.
    """
    store, stored = run.store, run.store.root / "results" / result.name / "promotion.json"
    current = store.channel(channel) or {}
    stages = {row["stage"]: row["fingerprint"] for row in result.stages}
    before, challenger = current.get("fingerprint"), stages["finetune"]
    if move := moved_before_retry(current, challenger):
        # Killed since: what follows from the move, such as its event, is still to be done.
        earlier = Finding("moved_before_retry", "promotes", move.reason or f"moved to {challenger}")
        decision = Decision(channel, True, [earlier], move.before, challenger)
        write_json(stored, decision.as_json())
        return decision.as_json()
    decision = _judge(run, channel, current, stages, result, progress, force)
    if decision.moved:
        if approve is not None:
            approve(decision.as_json())
        with store.channel_lock(channel):
            # The champion's evaluation may take an hour; another promotion or a rollback may finish first.
            current = store.channel(channel) or {}
            now = current.get("fingerprint")
            if now == before:
                reason = line(decision.findings)
                store.set_channel(channel, moved(current, stages, result.verdict, BY_PROMOTION, reason, result.name))
            else:
                text = f"kept at {now}, another promotion moved it there meanwhile; promote {challenger} again"
                decision = replace(decision, moved=False, findings=[Finding("moved_meanwhile", "blocks", text)])
    write_json(stored, decision.as_json())
    return decision.as_json()


@dataclass(frozen=True)
class Decision:
    """Whether a channel moves from one model to another, and why."""

    channel: str
    moved: bool
    findings: Sequence[Finding]
    """What was decided first, then what it rests on."""
    before: str | None
    after: str
    against_champion: Sequence[Row] = ()
    """The champion's figures as `base`, the challenger's as `tuned`; empty if they were not compared."""

    def as_json(self) -> dict[str, Any]:
        """Plain values, with the reason in one line."""
        rows = [
            {"benchmark": row.benchmark, "metric": row.metric, "champion": row.base, "challenger": row.tuned}
            | {"delta": row.delta, "low": row.low, "high": row.high}
            for row in self.against_champion
        ]
        plain = {"channel": self.channel, "moved": self.moved, "reason": line(self.findings)}
        plain |= {"findings": [finding.as_json() for finding in self.findings]}
        return plain | {"before": self.before, "after": self.after, "against_champion": rows}


def _judge(
    run: Run,
    channel: str,
    current: Mapping[str, Any],
    stages: Mapping[str, str],
    result: Result,
    progress: Progress,
    force: bool,
) -> Decision:
    """Whether the channel moves, its own rules first, then the gate against the base, then against the champion."""
    before, challenger = current.get("fingerprint"), stages["finetune"]

    def decision(moves: bool, code: str, text: str, more: Sequence[Finding] = (), rows: Sequence[Row] = ()) -> Decision:
        finding = Finding(code, "promotes" if moves else "blocks", text)
        return Decision(channel, moves, [finding, *more], before, challenger, rows)

    if challenger == before:
        if force and history(current)[-1].run != result.name:
            text = f"given to the run {result.name!r} by hand; it serves {challenger} already"
            return decision(True, "given_by_hand", text)
        return decision(False, "serves_already", "kept: the challenger is the model that it serves already")
    if force:
        return decision(True, "moved_by_hand", f"moved to {challenger} by hand")
    held = f"kept at {before or 'no model'}, the challenger {challenger} is held"
    over_base = from_json(result.summary["findings"])
    if result.verdict != "promote":
        return decision(False, "held", held, over_base)
    if other := of_another_run(current, result.name):
        # Both runs ran concurrently, when the channel had no model.
        return decision(False, "of_another_run", f"{held}: the channel {other}")
    if left := withdrawn(current, challenger):
        again = f"if it is to serve again, {BY_HAND}"
        text = f"{held}: {left.who} rolled the channel back from it at {left.at}; {again}"
        return decision(False, "withdrawn", text)
    if before is None:
        changes = result.summary.get("churn", {}).get("first_image_changes")
        evidence = Evidence((), run.settings.evaluate.gate, first_image_changes=changes)
        if blocked := list(churned(evidence)):
            return decision(False, "held", held, blocked)
        return decision(True, "first_model", f"moved to {challenger}, its first model", over_base)
    comparison = _against_champion(run, history(current)[-1], stages["evaluate"], progress)
    if isinstance(comparison, Finding):
        return decision(False, "held", held, [comparison])
    if comparison.verdict != "promote":
        return decision(False, "held", held, comparison.findings, comparison.rows)
    findings = [*over_base, *comparison.findings]
    return decision(True, "moved", f"moved from {before} to {challenger}", findings, comparison.rows)


def _against_champion(run: Run, champion: Move, evaluation: str, progress: Progress) -> Comparison | Finding:
    """A challenger (its ``evaluate`` artifact) against the champion (the last move to it); a finding if incomparable.

    Both are measured on the challenger's queries and images, and the gate compares each with its own base. The
    comparison has the champion's figures as `base` and the challenger's as `tuned`.
    """
    challengers = run.store.expect("evaluate", evaluation, "the challenger's evaluation")
    promoted, rows = _promoted_by(champion, run.store), _rows(challengers)
    benchmarks = {row.benchmark: row.kind for row in rows}
    if lacking := {(row.benchmark, row.kind) for row in promoted} - set(benchmarks.items()):
        names = ", ".join(f"{name} ({kind})" for name, kind in sorted(lacking))
        by = f"the champion {champion.after} was promoted by {names}, which the challenger was not measured on"
        return _incomparable(f"{by}; add what is missing to evaluate.benchmarks, or {BY_HAND}")
    champions = _measured(run, champion, challengers, progress)
    if isinstance(champions, str):
        return _incomparable(champions)
    outcomes = [
        Outcome(name, kind, _tuned(champions.path, name), _tuned(challengers.path, name))
        for name, kind in benchmarks.items()
    ]
    settings = run.settings
    evidence = Evidence(
        compared_rows(outcomes),
        settings.evaluate.gate,
        rival="the champion",
        images=searched_images(outcomes),
        independent_clicks=settings.independent_clicks,
        first_image_changes=_first_image_changes(champions, challengers),
        new_captions=_new_captions(run.store, champion.stages.get("ingest"), challengers.manifest.inputs["ingest"]),
        champions_own=tuple(promoted),
        challengers_own=tuple(rows),
    )
    return compare(evidence, AGAINST_CHAMPION)


def _first_image_changes(champions: Artifact, challengers: Artifact) -> float | None:
    """Percentage of the evaluation's queries whose first image is another one; None if they search no images."""
    files = [artifact.path / FIRST_IMAGES for artifact in (champions, challengers)]
    if not all(file.is_file() for file in files):
        return None
    before, after = (read_table(file)["image_id"].to_numpy() for file in files)
    return float(100 * np.mean(before != after))


def _new_captions(store: ArtifactStore, champions: str | None, challengers: str) -> float | None:
    """Percentage of the challenger's training captions (its ``ingest`` artifact) that the champion's lacks; None if
    that is gone."""
    old, new = champions and store.find("ingest", champions), store.find("ingest", challengers)
    if not old or not new:
        return None
    folders = [[str(file) for file in parquet_files(ingested.path / "captions")] for ingested in (old, new)]
    with duckdb.connect(":memory:", config=DUCKDB) as con:
        for name, files in zip(("old", "new"), folders, strict=True):
            con.read_parquet(files, hive_partitioning=False).filter("split = 'train'").create_view(name)
        share = "SELECT 100 * avg((caption_id NOT IN (FROM old SELECT caption_id))::INT) FROM new"
        return con.sql(share).fetchall()[0][0]


def _incomparable(why: str) -> Finding:
    return Finding("incomparable", "blocks", f"against the champion, {why}")


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
    return rows_from_json(read_json(evaluation.path / "comparison.json")["rows"])


def _tuned(folder: Path, benchmark: str) -> Measured:
    return from_table(read_table(folder / "samples" / f"{benchmark}.parquet"))[1]
