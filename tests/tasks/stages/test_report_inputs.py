"""What the report takes from manifests."""

from __future__ import annotations

from pathlib import Path

from paraclip_core.paraphrase.generate import Counts
from storage.artifacts import Artifact, Manifest
from tasks.stages.report_inputs import _stage


def artifact(counts: Counts) -> Artifact:
    manifest = Manifest("paraphrase_1", "f" * 32, 1, {}, {}, {}, counts.metrics(), {}, 1.0, "2026-01-01T00:00:00+00:00")
    return Artifact(Path("nowhere"), manifest)


def test_a_step_that_was_killed_half_way_reads_as_one_that_was_not() -> None:
    whole = Counts(10, 8, 0, 8, 7, prompt_tokens=800, completion_tokens=90, engine_seconds=9.5)
    resumed = Counts(10, 8, 6, 2, 7, prompt_tokens=200, completion_tokens=20, engine_seconds=2.5)
    assert _stage(artifact(whole)) == _stage(artifact(resumed))
    assert _stage(artifact(whole)).metrics["accepted"] == 7
