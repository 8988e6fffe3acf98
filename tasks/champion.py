"""A challenger against the champion of a channel, on the challenger's benchmarks.

The champion is measured by the stage ``evaluate`` itself, with the challenger's inputs and the champion's weights.
Where nothing but the weights differs between the two runs, that evaluation has the fingerprint of the champion's own
one and is found, not made again; otherwise it costs what the challenger's evaluation did: texts are encoded once more,
and the stored features of the images serve both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError
from paraclip_core.evaluation.compare import Comparison, Outcome, Verdict, compare, judge_challenger
from paraclip_core.evaluation.results import Measured, from_table
from paraclip_core.progress import Progress, silent
from storage.artifacts import Artifact, ArtifactStore, Draft
from storage.files import read_json
from storage.fingerprint import fingerprint
from storage.parquet import read_table
from tasks.dag import Node
from tasks.run import run_node
from tasks.stage import software_versions
from tasks.stages.evaluate import EVALUATE

__all__ = ["Duel", "challenge", "duel_rows"]

BY_HAND = "move the channel yourself with `paraclip promote --force`"


@dataclass(frozen=True)
class Duel:
    """What came of a challenge."""

    verdict: Verdict
    reason: str
    comparison: Comparison | None = None
    """The champion's figures as `base`, the challenger's as `tuned`; None where they cannot be compared."""


def challenge(
    settings: Settings, store: ArtifactStore, champion: str, evaluation: str, progress: Progress = silent
) -> Duel:
    """Whether the challenger may follow the champion.

    Args:
        settings: those of the challenger's run.
        store: where both models are.
        champion: fingerprint of the champion's ``finetune`` artifact.
        evaluation: fingerprint of the challenger's ``evaluate`` artifact.
        progress: told how far the champion's evaluation is, where it has to be made.

    Raises:
        ArtifactError: an artifact of the challenger's run is gone or damaged.
        ParaclipError: what the champion's evaluation raised.
    """
    challengers = store.find("evaluate", evaluation)
    if challengers is None:
        raise ArtifactError(f"the artifact evaluate/{evaluation} is gone; run the same settings again")
    model = store.peek("finetune", champion)
    if model is None:
        return Duel("hold", f"the champion {champion} is gone from {store.location}; restore it, or {BY_HAND}")
    rival = store.peek("finetune", challengers.manifest.inputs["finetune"])
    towers = _tower(model), _tower(rival)
    if towers[0] != towers[1]:
        return Duel(
            "hold",
            f"the champion {champion} has image tower {towers[0]} and the challenger {towers[1]}, so image indexes of "
            f"one are useless to the other; build them anew and {BY_HAND}, or tune the champion's base",
        )
    champions = store.download(run_node(_node(challengers, champion), settings, store, progress))
    comparison = compare(_outcomes(champions, challengers), settings.evaluate, rule=judge_challenger)
    return Duel(comparison.verdict, comparison.reason, comparison)


def duel_rows(comparison: Comparison) -> list[dict[str, Any]]:
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


def _node(evaluation: Artifact, model: str) -> Node:
    """The same evaluation of another model."""
    manifest = evaluation.manifest
    inputs = {**manifest.inputs, "finetune": model}
    name = fingerprint(EVALUATE.name, manifest.stage_version, manifest.options, inputs)
    draft = Draft(EVALUATE.name, name, manifest.stage_version, inputs, manifest.options, software_versions())
    return Node(EVALUATE, draft)


def _outcomes(champions: Artifact, challengers: Artifact) -> list[Outcome]:
    rows = read_json(challengers.path / "comparison.json")["rows"]
    kinds = {row["benchmark"]: row["kind"] for row in rows}
    return [
        Outcome(name, kind, _tuned(champions.path, name), _tuned(challengers.path, name))
        for name, kind in kinds.items()
    ]


def _tuned(folder: Path, benchmark: str) -> Measured:
    return from_table(read_table(folder / "samples" / f"{benchmark}.parquet"))[1]
