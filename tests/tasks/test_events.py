"""A stage's events as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paraclip_core.errors import StageError
from storage.artifacts import ArtifactStore
from tasks.events import EventLog, events_path
from tasks.run import run_stage

HOSTILE = "a \x1b[31mred\u202e dog\n{'event': 'finished'}"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def test_a_stage_leaves_its_events(tmp_path: Path) -> None:
    from fake_stages import STAGES, settings_at  # pyright: ignore[reportMissingImports]

    artifact = run_stage("first", settings_at(tmp_path), stages=STAGES, reference="fake_stages:STAGES")
    path = events_path(ArtifactStore(tmp_path), "first", artifact.fingerprint)
    found = lines(path)
    assert [line["event"] for line in found] == ["started", "finished"]
    assert found[-1]["counts"]["rows"] == 3 and found[-1]["seconds"] > 0
    # A finished stage is only found, which is no event.
    run_stage("first", settings_at(tmp_path), stages=STAGES, reference="fake_stages:STAGES")
    assert lines(path) == found


def test_progress_comes_now_and_then_and_hostile_text_stays_on_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "logs" / "x.events.jsonl"
    with pytest.raises(StageError), EventLog(path, "paraphrase_1", "0" * 32, "shards") as events:
        events.progress(1, 10)
        monkeypatch.setattr("tasks.events.PROGRESS_SECONDS", 0.0)
        events.progress(2, None, waiting=HOSTILE)
        raise StageError(HOSTILE + "x" * 10_000)
    assert b"\x1b" not in path.read_bytes()
    started, progress, failed = lines(path)
    assert started["part"] == "shards" and started["fingerprint"] == "0" * 32
    assert (progress["done"], progress["total"], progress["facts"]) == (2, None, {"waiting": HOSTILE})
    assert failed["event"] == "failed" and failed["error"] == "StageError"
    assert failed["text"].startswith(HOSTILE) and len(failed["text"]) == 2000


def test_its_size_is_bounded_and_a_disk_that_refuses_it_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.events.MOST_BYTES", 1000)
    monkeypatch.setattr("tasks.events.PROGRESS_SECONDS", 0.0)
    path = tmp_path / "x.events.jsonl"
    with EventLog(path, "s", "f") as events:
        for done in range(100):
            events.progress(done, 100)
    assert lines(path)[-1]["event"] == "finished"
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 3000
    (tmp_path / "file").write_text("")
    with EventLog(tmp_path / "file" / "x.jsonl", "s", "f") as events:
        events.progress(1, 2)
