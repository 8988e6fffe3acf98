"""What the stage table says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from storage.artifacts import Artifact, Manifest
from tasks.results import stage_row, untuned


def _row(metrics: dict[str, Any]) -> dict[str, Any]:
    return stage_row(Artifact(Path("a"), Manifest("ingest", "f", 1, {}, {}, {}, metrics, {}, 0.0, "")), False, 1.0)


@pytest.mark.parametrize(
    ("metrics", "rejected", "reasons"),
    [
        ({"rejected": {"empty": 1, "too_many_words": 84}}, 85, [("too_many_words", 84), ("empty", 1)]),
        ({"rejected": 2}, 2, []),
        ({}, 0, []),
    ],
)
def test_rejects_and_their_reasons(metrics: dict[str, Any], rejected: int, reasons: list[tuple[str, int]]) -> None:
    row = _row(metrics)
    assert (row["rejected"], list(row["reasons"].items())) == (rejected, reasons)


def test_a_model_that_stayed_as_it_was_is_told() -> None:
    note = untuned({"alpha": 0.0, "steps": 2, "rows": 98})
    assert note is not None
    for part in ("tuned is the base itself", "2 steps over 98 rows", "finetune.epochs"):
        assert part in note
    assert untuned({"alpha": 0.25, "steps": 2, "rows": 98}) is None
    assert untuned({}) is None
