"""Weights appear whole, with the modes of other files, and killed writers leave nothing that stays."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from paraclip.storage.files import remove_temporary
from paraclip_core.tensor_file import set_default_mode, write_tensors

REWRITE = """
import sys, itertools
from pathlib import Path
import torch
from paraclip_core.tensor_file import write_tensors
for number in itertools.count():
    write_tensors({"w": torch.full((10_000_000,), float(number))}, Path(sys.argv[1]))
    print(number, flush=True)
"""


def test_tensors_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for value in (1.0, 2.0):
        write_tensors({"a": torch.full((3,), value), "b": torch.zeros(2, dtype=torch.int64)}, path, {"format": "pt"})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert load_file(path)["a"].tolist() == [2.0, 2.0, 2.0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_killed_writer_leaves_the_file_whole_and_a_draft_that_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    command = [sys.executable, "-c", REWRITE, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        until = time.monotonic() + 60
        while not list(tmp_path.glob(".*/.*")) and time.monotonic() < until:  # the library's own draft
            pass
        child.send_signal(signal.SIGKILL)
    assert load_file(path)["w"].unique().numel() == 1
    assert list(tmp_path.glob(".*/*")), "killed beside a write"
    remove_temporary(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_the_next_writer_sweeps_what_a_killed_one_left(tmp_path: Path) -> None:
    draft = tmp_path / ".w.safetensors.tmp"
    for leftover in (draft, draft / ".tmpfgfpzX"):
        leftover.parent.mkdir(exist_ok=True)
        leftover.write_text("half")
        write_tensors({"w": torch.zeros(1)}, tmp_path / "w.safetensors")
        assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_file_that_grows_too_big_is_an_os_error_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_tensors({"w": torch.zeros(1)}, path)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match=r"(?i)large"):
            write_tensors({"w": torch.ones(1 << 20)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert load_file(path)["w"].tolist() == [0.0]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_who_may_read_other_files_may_read_weights(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_tensors({"w": torch.zeros(1)}, tmp_path / "w.safetensors")
        (tmp_path / "other").touch()
        (tmp_path / "private").touch(0o600)
        set_default_mode(tmp_path / "private")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o666 & ~mask}
