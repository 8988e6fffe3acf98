"""Which share of its rows a paraphrase step will accept, before it has judged them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paraclip_core.config import Settings
from paraclip_core.paraphrase.estimate import Judged
from paraclip_core.paraphrase.relevant import relevant
from storage.artifacts import Artifact, ArtifactStore
from tasks.stages.paraphrase import PARAPHRASE_1, PARAPHRASE_2

__all__ = ["ASSUMED", "Acceptance", "acceptance"]

ASSUMED = {1: 0.82, 2: 0.67}
"""What the gates for small models let pass of the embedded model's answers to captions of rendered scenes."""


ENOUGH = 50
"""Answered rows of the run itself that say more than another run's."""


@dataclass(frozen=True)
class Acceptance:
    """A share and where it comes from."""

    share: float
    basis: str


def acceptance(settings: Settings, store: ArtifactStore, step: int, known: Judged) -> Acceptance:
    """That of the step's own rows with answers, of the nearest artifact with the same engine and gates' preset, else an
    assumed one.
    """
    stage = {1: PARAPHRASE_1, 2: PARAPHRASE_2}[step]
    if relevant(settings.paraphrase).chosen_gates().preset == "paper":
        return Acceptance(1.0, f"all of {stage.name} accepted")
    judged = known.accepted + known.rejected
    if judged >= ENOUGH:
        share = known.accepted / judged
        return Acceptance(share, f"{share:.0%} of {stage.name} accepted as of the {judged} rows with answers")
    options = stage.options(settings)
    # The newest of the nearest.
    earlier = [artifact for artifact in reversed(store.list(stage.name)) if _alike(artifact, options)]
    if not earlier:
        return Acceptance(
            ASSUMED[step], f"{ASSUMED[step]:.0%} of {stage.name} accepted (assumed, as of rendered scenes)"
        )
    nearest = min(earlier, key=lambda artifact: _differences(artifact.manifest.options, options))
    metrics, name = nearest.manifest.metrics, nearest.manifest.fingerprint[:12]
    share = metrics["accepted"] / metrics["captions"]
    return Acceptance(share, f"{share:.0%} accepted as in {stage.name}/{name}")


def _alike(artifact: Artifact, options: Mapping[str, Any]) -> bool:
    before, metrics = artifact.manifest.options, artifact.manifest.metrics
    return (
        before.get("engine") == options["engine"]
        and before.get("gates", {}).get("preset") == options["gates"]["preset"]
        and "accepted" in metrics
        and bool(metrics.get("captions"))
    )


def _differences(before: Mapping[str, Any], options: Mapping[str, Any]) -> int:
    # Through JSON, as the manifest's went.
    now = json.loads(json.dumps(options, default=list))
    return sum(before.get(key) != now.get(key) for key in before.keys() | now.keys())
