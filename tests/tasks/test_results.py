"""What the stage table says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from storage.artifacts import Artifact, Manifest
from tasks.results import stage_row


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
