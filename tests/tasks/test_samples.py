"""Samples on their way from a stage's process to who looks."""

from __future__ import annotations

from pathlib import Path

from tasks.samples import keeping_samples, latest_samples

ROWS = [{"input": "a dog", "answer": "one dog", "outcome": "kept"}]


def test_they_are_kept_now_and_then_and_a_progress_goes_on(tmp_path: Path) -> None:
    path, told = tmp_path / "cache" / "samples.json", []
    rows: list[dict[str, str]] = []
    progress = keeping_samples(lambda done, total, **facts: told.append((done, total, facts)), lambda: rows, path)
    progress(1, 3)
    assert latest_samples(path) == []
    rows.extend(ROWS)
    progress(2, 3, generated=7)
    assert latest_samples(path) == ROWS
    rows.clear()
    rows.append({"input": "a cat", "answer": "", "outcome": "empty"})
    # Not again within a few seconds.
    progress(3, 3)
    assert latest_samples(path) == ROWS
    assert told == [(1, 3, {}), (2, 3, {"generated": 7}), (3, 3, {})]


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told: list[int] = []
    keeping_samples(lambda done, total, **facts: told.append(done), lambda: ROWS, tmp_path / "file" / "x.json")(1, 2)
    assert told == [1]
