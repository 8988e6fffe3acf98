"""Checkpoints that are damaged, lost, or of another run."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest
import torch

from paraclip_core.errors import TrainingError
from paraclip_core.training.checkpoint import CheckpointFolder, TrainingLog


def saved(folder: Path, steps: int = 3) -> CheckpointFolder:
    checkpoints = CheckpointFolder(folder, "this run")
    for step in range(1, steps + 1):
        checkpoints.save({"step": step, "n": step}, {"w": torch.full((100,), float(step)), "s": torch.tensor(1.0)})
    return checkpoints


def test_they_come_back_and_two_are_kept(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    assert list(checkpoints.sound_steps()) == [3, 2]
    state, tensors = checkpoints.load(3)
    assert (state, float(tensors["w"][0])) == ({"step": 3, "n": 3}, 3.0)
    assert not list(CheckpointFolder(tmp_path / "none", "x").sound_steps())


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
        assert next(checkpoints.sound_steps()) == 2
    assert "step-00000003.safetensors is damaged" in caplog.text


def test_another_run_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(TrainingError, match="belongs to another run"):
        list(CheckpointFolder(tmp_path, "that run").sound_steps())


def test_file_and_folder_are_on_the_disk_before_an_older_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, told = saved(tmp_path, 2), list[list[str]]()
    names = {tmp_path.stat().st_ino: "folder"}

    def note(descriptor: int) -> None:
        what = names.get(os.fstat(descriptor).st_ino, "file")
        told.append([what, *sorted(path.name[5:13] for path in tmp_path.glob("step-*"))])

    monkeypatch.setattr(os, "fsync", note)
    checkpoints.save({"step": 3}, {"w": torch.zeros(1)})
    assert told == [["file", "00000001", "00000002"], ["folder", "00000001", "00000002", "00000003"]]


def test_a_checkpoint_behind_a_disk_at_fault_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path, *_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    checkpoints = saved(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(Path, "open", failing)
        with pytest.raises(TrainingError, match=r"cannot read the checkpoint .*00000003\.safetensors: Input/output"):
            list(checkpoints.sound_steps())
    assert next(checkpoints.sound_steps()) == 3


def test_an_old_one_that_may_not_be_deleted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".safetensors":
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "unlink", failing)
    with pytest.raises(TrainingError, match=r"cannot delete the old checkpoint .*00000001\.safetensors: Permission"):
        saved(tmp_path)


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
