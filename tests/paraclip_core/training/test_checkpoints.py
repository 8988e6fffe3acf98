"""Checkpoints come back whole, or the one before them does."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch

from paraclip_core.training.checkpoints import CheckpointFolder


def saved(folder: Path, steps: int = 3) -> CheckpointFolder:
    checkpoints = CheckpointFolder(folder, "this run")
    for step in range(1, steps + 1):
        checkpoints.save({"step": step, "n": step}, {"w": torch.full((100,), float(step)), "s": torch.tensor(1.0)})
    return checkpoints


def test_they_come_back_and_two_are_kept(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    assert [state["step"] for state in checkpoints.sound()] == [3, 2]
    state, tensors = checkpoints.load(3)
    assert (state, float(tensors["w"][0])) == ({"step": 3, "n": 3}, 3.0)
    assert not list(CheckpointFolder(tmp_path / "none", "x").sound())


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "facts", "nonsense"])
def test_damaged_newest_falls_back(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = saved(tmp_path)
    path = tmp_path / "step-00000003.safetensors"
    data = bytearray(path.read_bytes())
    flipped = data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]
    facts = data.replace(rb"\"n\": 3", rb"\"n\": 7")
    assert facts != data
    damaged = {"cut": data[:-9], "empty": b"", "flipped": flipped, "facts": facts, "nonsense": b"\xff" * 64}
    path.write_bytes(damaged[damage])
    with caplog.at_level(logging.WARNING):
        assert next(checkpoints.sound())["step"] == 2
    assert "step-00000003.safetensors is damaged" in caplog.text


def test_files_are_on_the_disk_before_an_older_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, synced = saved(tmp_path, 2), list[list[str]]()
    names = {tmp_path.stat().st_ino: "folder"}

    def note(descriptor: int) -> None:
        what = names.get(os.fstat(descriptor).st_ino, "file")
        synced.append([what, *sorted(path.name[5:13] for path in tmp_path.glob("step-*"))])

    monkeypatch.setattr(os, "fsync", note)
    checkpoints.save({"step": 3}, {"w": torch.zeros(1)})
    assert synced == [["file", "00000001", "00000002"], ["folder", "00000001", "00000002", "00000003"]]
