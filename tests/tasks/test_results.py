"""What the stage table and the summary say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft, Manifest
from paraclip.tasks.results import gather_result, stage_row, untuned
from paraclip.tasks.run.run import Run
from paraclip_core.captions.options import DataOptions, IndexOptions
from paraclip_core.config import Settings


@pytest.mark.parametrize(
    ("rejected", "total", "reasons"),
    [({"empty": 1, "too_many_words": 84}, 85, [("too_many_words", 84), ("empty", 1)]), (2, 2, []), (0, 0, [])],
)
def test_rejects_and_their_reasons(rejected: Any, total: int, reasons: list[tuple[str, int]]) -> None:
    manifest = Manifest("ingest", "f", 1, {}, {}, files={}, metrics={"rejected": rejected}, wall_seconds=0, created="")
    row = stage_row(Artifact(Path("a"), manifest), False, 1.0)
    assert (row["rejected"], list(row["reasons"].items())) == (total, reasons)


def test_a_model_that_stayed_as_it_was_is_reported() -> None:
    note = untuned({"alpha": 0.0, "candidates": 9, "steps": 2, "rows": 98})
    assert note is not None
    for part in ("tuned is the base itself", "none of 9 candidates", "2 steps over 98 rows", "candidates.json"):
        assert part in note
    assert untuned({"alpha": 0.25, "steps": 2, "rows": 98}) is None
    assert untuned({}) is None


@pytest.mark.parametrize(
    ("pairs", "images", "grid", "few"),
    [(18, 17, (0.5, 1), True), (3000, 600, (0.5, 1), False), (0, 40, (0.5, 1), False), (18, 17, (1,), False)],
)
def test_an_alpha_that_few_pairs_chose_is_reported(
    tmp_path: Path, pairs: int, images: int, grid: tuple[float, ...], few: bool
) -> None:
    metrics: dict[str, Any] = {"finetune": {"validation_pairs": pairs, "validation_images": images}}
    store = ArtifactStore(tmp_path)
    settings = Settings.model_validate({"finetune": {"alpha": {"grid": grid}}})
    artifacts = _artifacts(store, metrics)
    notes = gather_result(Run(settings, store), artifacts).summary["notes"]
    assert (
        any(
            note.startswith(f"recipe, learning rate and α are chosen on {pairs} pairs of held-out training images")
            for note in notes
        )
        is few
    )
    of_log = settings.model_copy(update={"data": DataOptions(index=IndexOptions(features="index.npy"))})
    notes = gather_result(Run(of_log, store), artifacts).summary["notes"]
    assert any("held-out training queries" in note and note.endswith("add queries") for note in notes) is few


FINDINGS = [
    {"code": "beyond_max_drop", "effect": "blocks", "text": "it fell", "figures": []},
    {"code": "left_out", "effect": "notes", "text": "a note", "figures": []},
]
METRICS = {
    "paraphrase_1": {"captions": 4512, "accepted": 300, "kept": 500},
    "paraphrase_2": {"captions": 500, "accepted": 150, "kept": 320},
    "finetune": {"rows": 137},
}


def _artifacts(store: ArtifactStore, metrics: Mapping[str, dict[str, Any]]) -> dict[str, Artifact]:
    artifacts = {}
    for stage in (*metrics, "evaluate"):
        draft = Draft(stage, stage.encode().hex()[:32].ljust(32, "0"), 1, {}, {})
        with store.writing(stage, draft.fingerprint) as work:
            summary = {"models": {"base": {}, "tuned": {}}, "verdict": "hold", "findings": FINDINGS}
            (work.out / "summary.json").write_text(json.dumps(summary))
            artifacts[stage] = store.commit(draft, metrics.get(stage, {}), 0.0)
    return artifacts


@pytest.mark.parametrize(
    ("metrics", "rows", "verdict"),
    [
        (METRICS, {"asked": 4512, "kept": 150, "paraphrases": 320, "trained_on": 137}, "137 of 4,512"),
        ({"finetune": {"rows": 137}}, {"trained_on": 137}, "137"),
        ({}, {}, None),
    ],
)
def test_the_summary_counts_the_rows(
    tmp_path: Path, metrics: dict[str, dict[str, Any]], rows: dict[str, int], verdict: str | None
) -> None:
    store = ArtifactStore(tmp_path)
    artifacts = _artifacts(store, metrics)
    for batch_size, few in ((137, False), (138, verdict is not None)):
        settings = Settings.model_validate({"finetune": {"batch_size": batch_size}})
        result = gather_result(Run(settings, store), artifacts)
        summary = json.loads((tmp_path / "results" / settings.name / "summary.json").read_text())
        assert result.rows == rows == summary["rows"] and result.summary == summary
        assert summary["reason"] == "it fell" + (f"; trained on {verdict} captions" if verdict else "")
        assert summary["notes"] == ["a note", *([result.warning] if few else [])]
        assert (result.warning is not None) is few
        if result.warning is not None:
            assert result.warning.startswith(f"trained on {verdict} captions, fewer than one batch")
