"""One writer at a time, over processes, threads and dead owners."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from paraclip.storage.locks import lock
from paraclip_core.errors import ArtifactError, LockedError
from tests.kit.machines import AT_ONCE

HOLD = """
import sys, time
from pathlib import Path
from paraclip.storage.locks import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""

COUNT = """
import sys
from pathlib import Path
from paraclip.storage.locks import lock
counter = Path(sys.argv[1])
for _ in range(int(sys.argv[2])):
    with lock(counter.with_suffix(".lock")):
        value = int(counter.read_text())
        counter.write_text(str(value + 1))
"""


@contextmanager
def held(path: Path, seconds: float) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(path), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield child


def test_waiting_is_reported_and_can_be_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def enough() -> None:
        if f"waiting for process {os.getpid()} on " in caplog.text:
            raise KeyboardInterrupt

    with (
        caplog.at_level("INFO"),
        lock(tmp_path / "x.lock"),
        pytest.raises(KeyboardInterrupt),
        lock(tmp_path / "x.lock", poll=enough),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_living_owner_is_named_and_a_killed_one_followed_at_once(tmp_path: Path) -> None:
    with held(tmp_path / "x.lock", 60) as child:
        named = pytest.raises(LockedError, match=f"held by process {child.pid} on ")
        with named, lock(tmp_path / "x.lock", wait_seconds=0.05):
            pass
        child.send_signal(signal.SIGKILL)
        started = time.monotonic()
        # Nobody has waited for the child, so it is a zombie.
        with lock(tmp_path / "x.lock"):
            assert time.monotonic() - started < AT_ONCE


def test_processes_exclude_each_other(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    counter.with_suffix(".lock").write_text("left by a dead process")
    children = [subprocess.Popen([sys.executable, "-c", COUNT, str(counter), "40"]) for _ in range(3)]
    assert [child.wait(120) for child in children] == [0] * 3
    assert counter.read_text() == "120"


def test_a_forked_process_does_not_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with lock(path):
        links = [link for link in Path("/proc/self/fd").iterdir() if link.exists() and link.samefile(path)]
        forked = subprocess.Popen(["sleep", "60"], pass_fds=[int(link.name) for link in links])
    try:
        with lock(path, wait_seconds=0):
            pass
    finally:
        forked.kill()
        forked.wait()


def test_a_folder_without_flock_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", without)
    with pytest.raises(ArtifactError, match=r"cannot lock .*x\.lock: No locks.*needs a file system with flock"):
        lock(tmp_path / "x.lock").__enter__()
