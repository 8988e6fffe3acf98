"""The progress of shards, shown as that of one stage."""

from __future__ import annotations

from typing import Any

from paraclip.flows.shards import Board
from paraclip.tasks.run.run import Stop


def test_acceptance_is_the_mean_over_rows() -> None:
    seen: list[tuple[int, int | None, dict[str, Any]]] = []
    board = Board(2, lambda done, total, **facts: seen.append((done, total, facts)), Stop())
    board.progress_of(0)(0, 500, generated=3)
    assert "acceptance" not in seen[-1][2]
    board.progress_of(0)(300, 500, generated=300, acceptance=0.9, eta_seconds=7, spend=1.5)
    board.progress_of(1)(100, 400, generated=150, acceptance=0.5, eta_seconds=9, spend=0.5)
    facts = {"shards": 2, "generated": 450, "acceptance": 0.8, "eta_seconds": 9, "spend": 2.0}
    assert seen[-1] == (400, 900, facts)
    # One that has judged nothing yet has no weight.
    board.progress_of(1)(100, 400, warning="few are accepted")
    assert (seen[-1][2]["acceptance"], seen[-1][2]["warning"]) == (0.9, "few are accepted")
