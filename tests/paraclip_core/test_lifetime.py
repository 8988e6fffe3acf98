"""Temporary folders: deleted at their end, and by the next process where there was none."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from paraclip_core import lifetime
from paraclip_core.lifetime import OWNER, TempDir, sweep


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of this test's own, in which nothing is too young to be swept."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(lifetime, "SETTLED_SECONDS", 0.0)
    return tmp_path


def left_by_a_killed_process(place: Path) -> Path:
    code = "from paraclip_core.lifetime import TempDir; import time; print(TempDir().path, flush=True); time.sleep(60)"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(place)}
    )
    assert child.stdout is not None
    with child.stdout:
        path = Path(child.stdout.readline().strip())
    assert sweep() == [] and path.is_dir(), "its owner lives"
    child.send_signal(signal.SIGKILL)
    child.wait()
    return path


def test_it_is_gone_at_its_end(place: Path) -> None:
    with TempDir("kind-") as folder:
        assert folder.is_dir() and folder.name.startswith("paraclip-kind-")
        (folder / "request.json").write_text("{}")
    assert list(place.iterdir()) == []


def test_the_next_one_deletes_what_a_killed_process_left(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = left_by_a_killed_process(place)
    with monkeypatch.context() as young:
        young.setattr(lifetime, "SETTLED_SECONDS", 60.0)
        assert sweep() == [] and path.is_dir()
        with TempDir():
            assert path.is_dir()
            os.utime(path / OWNER, (0, 0))
        # What was too young at its beginning is swept at its end.
        assert list(place.iterdir()) == []
    path.mkdir()
    (path / OWNER).touch()
    with TempDir():
        assert not path.exists()


def test_a_kill_at_either_end_leaves_nothing_that_nobody_sweeps(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "paraclip-new").mkdir()
    assert sweep() == [place / "paraclip-new"]
    path = left_by_a_killed_process(place)
    (path / "deep").mkdir()
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda *_, **__: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            sweep()
    assert sweep() == [path] and list(place.iterdir()) == []


def test_what_others_put_there_is_left_alone(place: Path) -> None:
    for folder in ("elsewhere", "paraclip-plain"):
        (place / folder).mkdir()
    (place / "elsewhere" / OWNER).touch()
    (place / "paraclip-link").symlink_to(place / "elsewhere")
    (place / "paraclip-file").touch()
    (place / "paraclip-plain" / "notes").touch()
    before = set(place.iterdir())
    assert sweep() == [] and set(place.iterdir()) == before and len(before) == 4
