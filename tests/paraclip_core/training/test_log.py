"""The training log ends where the newest checkpoint does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paraclip_core.training.log import TrainingLog


def test_lines_behind_a_checkpoint_go_and_those_before_it_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "logs" / "log.jsonl", list[int]()
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    log = TrainingLog(path)
    assert log.resume(0)
    log.write({"step": 1})
    size = log.sync()
    assert synced == [size] == [path.stat().st_size]
    log.write({"step": 2})
    assert log.resume(size)
    assert path.read_text() == '{"step": 1}\n'
    assert not log.resume(size + 1), "what is lost cannot be had back"
