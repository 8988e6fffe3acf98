"""The progress of shards, shown as that of one stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paraclip.flows import shards
from paraclip.flows.shards import Board
from paraclip.storage.artifacts import ArtifactStore
from paraclip.storage.roots import LOCAL_VARIABLE
from paraclip.tasks.run.run import Stop
from paraclip.tasks.shards import ShardJob, reporting

Told = list[tuple[int, int | None, dict[str, Any]]]


@pytest.fixture
def told() -> Told:
    """What was told."""
    return []


def board_of(told: Told, count: int) -> Board:
    return Board(count, lambda done, total, **facts: told.append((done, total, facts)), Stop())


def job_at(root: str) -> ShardJob:
    draft = {"stage": "paraphrase_1", "fingerprint": "f" * 16}
    return ShardJob(1, 2, draft, "u", {}, root)


def test_acceptance_is_the_mean_over_rows(told: Told) -> None:
    board = board_of(told, 2)
    board.told(0)(0, 500, generated=3)
    assert "acceptance" not in told[-1][2]
    board.told(0)(300, 500, generated=300, acceptance=0.9, eta_seconds=7, spend=1.5)
    board.told(1)(100, 400, generated=150, acceptance=0.5, eta_seconds=9, spend=0.5)
    facts = {"shards": 2, "generated": 450, "acceptance": 0.8, "eta_seconds": 9, "spend": 2.0}
    assert told[-1] == (400, 900, facts)
    # Who has judged nothing yet has no weight.
    board.told(1)(100, 400, warning="few are accepted")
    assert (told[-1][2]["acceptance"], told[-1][2]["warning"]) == (0.9, "few are accepted")


def test_shards_elsewhere_are_followed_through_the_root(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "LOOK_SECONDS", 0.01)
    job = job_at(ArtifactStore(tmp_path).location)
    # An earlier run's report.
    reporting(job, 0)(100, 100, generated=100)
    board = board_of(told, 2)
    with shards._following(job, board):
        assert not board.heard
        reporting(job, 0)(30, 100, generated=30, requests_per_second=2.5, acceptance=0.5)
        reporting(job, 1)(10, 50, generated=10, requests_per_second=1.0, acceptance=0.9)
    facts = {"shards": 2, "generated": 40, "requests_per_second": 3.5, "acceptance": 0.6}
    assert told[-1] == (40, 150, facts) and board.heard
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "nothing of it is left"


def test_where_no_folder_is_shared_nothing_is_left(told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOCAL_VARIABLE, str(tmp_path))
    board, job = board_of(told, 2), job_at("memory://shard-progress/root")
    with shards._following(job, board):
        reporting(job, 0)(30, 100, generated=30)
    assert not board.heard and not told
