"""One writer at a time, over processes, threads, dead owners and other machines."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from patience import AT_ONCE

from paraclip_core.errors import ArtifactError, LockedError
from storage import locks
from storage.locks import lock

HOLD = """
import sys, time
from pathlib import Path
from storage.locks import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""

COUNT = """
import sys
from pathlib import Path
from storage.locks import lock
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


def foreign(path: Path, **changes: object) -> None:
    owner = {"token": "t", "pid": 1, "started": "1", "host": "elsewhere", "space": ""}
    path.write_text(json.dumps(owner | changes))


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with lock(tmp_path / "a" / "x.lock"):
        assert [p.name for p in (tmp_path / "a").iterdir()] == ["x.lock"]
    assert list((tmp_path / "a").iterdir()) == []


def test_the_draft_of_a_process_killed_before_it_held_the_lock_goes(tmp_path: Path) -> None:
    dead, young, other = (tmp_path / f"x.lock.{name}" for name in ("0a" * 16, "1b" * 16, "json"))
    long_ago = time.time() - locks.STALE_SECONDS - 5
    for path in (dead, young, other):
        path.write_text("{")
        if path != young:
            os.utime(path, (long_ago, long_ago))
    with lock(tmp_path / "x.lock"):
        assert not dead.exists() and young.exists() and other.exists()


def test_an_exception_frees_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), lock(tmp_path / "x.lock"):
        raise ValueError("mine")
    with lock(tmp_path / "x.lock", wait_seconds=0):
        pass


def test_a_living_owner_is_named(tmp_path: Path) -> None:
    with (
        lock(tmp_path / "x.lock"),
        pytest.raises(LockedError, match=f"held by process {os.getpid()} on "),
        lock(tmp_path / "x.lock", wait_seconds=0.05),
    ):
        pass


def test_waiting_can_be_given_up(tmp_path: Path) -> None:
    def enough() -> None:
        raise KeyboardInterrupt

    with (
        lock(tmp_path / "x.lock"),
        pytest.raises(KeyboardInterrupt),
        lock(tmp_path / "x.lock", poll=enough),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    with held(tmp_path / "x.lock", 0.5) as child, lock(tmp_path / "x.lock"):
        assert child.wait(120) == 0


def test_a_killed_owner_is_followed_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with held(tmp_path / "x.lock", 60) as child:
        child.send_signal(signal.SIGKILL)
    started = time.monotonic()
    with lock(tmp_path / "x.lock"):
        assert time.monotonic() - started < AT_ONCE
    assert f"dead process {child.pid}" in caplog.text


def test_who_took_it_over_first_keeps_it(tmp_path: Path) -> None:
    foreign(tmp_path / "x.lock", token="theirs")
    locks._take_over(tmp_path / "x.lock", {"token": "of the dead one"})
    assert (tmp_path / "x.lock").exists()


def test_an_unreaped_owner_is_dead(tmp_path: Path) -> None:
    with held(tmp_path / "x.lock", 60) as child:
        child.send_signal(signal.SIGKILL)
        started = time.monotonic()
        with lock(tmp_path / "x.lock"):  # nobody has waited for the child, so it is a zombie
            assert time.monotonic() - started < AT_ONCE


def test_a_reused_process_number_is_not_the_owner(tmp_path: Path) -> None:
    foreign(tmp_path / "x.lock", pid=os.getpid(), started="1", **locks._here())
    with lock(tmp_path / "x.lock", wait_seconds=0):
        pass


def test_another_container_of_the_same_name_is_not_judged_by_its_process_number(tmp_path: Path) -> None:
    foreign(tmp_path / "x.lock", host=locks._here()["host"], space="pid:[1]", pid=2**30)
    with pytest.raises(LockedError), lock(tmp_path / "x.lock", wait_seconds=0.1):
        pass


def test_a_silent_owner_elsewhere_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "DEAD_SECONDS", 0.3)
    foreign(tmp_path / "x.lock")
    started = time.monotonic()
    with lock(tmp_path / "x.lock"):
        assert 0.3 <= time.monotonic() - started < AT_ONCE


def test_a_lock_that_is_judged_outlives_no_silent_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "DEAD_SECONDS", 0.3)
    foreign(tmp_path / "x.lock")
    with pytest.raises(LockedError), lock(tmp_path / "x.lock", wait_seconds=0):
        pass
    with lock(tmp_path / "x.lock", wait_seconds=0, confirm=True):
        pass


def test_a_judged_owner_that_shows_a_sign_of_life_keeps_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    foreign(path)
    started = time.monotonic()
    with pytest.raises(LockedError), lock(path, wait_seconds=0, poll=lambda: os.utime(path), confirm=True):
        pass
    assert time.monotonic() - started < AT_ONCE
    path.unlink()
    with lock(path), pytest.raises(LockedError), lock(path, wait_seconds=0, confirm=True):
        pass
    assert time.monotonic() - started < AT_ONCE, "a process of this machine is known to live"


def test_another_machines_clock_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "DEAD_SECONDS", 0.5)
    path = tmp_path / "x.lock"
    foreign(path)
    ticks = iter(range(1, 1000))

    def beat_an_hour_ago() -> None:
        os.utime(path, (time.time() - 3600, time.time() - 3600 + next(ticks)))

    with pytest.raises(LockedError), lock(path, wait_seconds=1.2, poll=beat_an_hour_ago):
        pass


def test_another_machine_of_the_same_name_is_not_this_one() -> None:
    gone = {**locks.this_process(), "pid": 2**30}
    assert locks.is_dead(gone, 0.0, 60.0)
    other = {**gone, "machine": "another", "boot": "another"}
    assert not locks.is_dead(other, 59.0, 60.0) and locks.is_dead(other, 61.0, 60.0)


def test_a_lock_from_before_a_restart_of_this_machine_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_here", lambda: {"host": "h", "space": "s", "machine": "m", "boot": "second"})
    owner = {"pid": os.getpid(), "started": "1", "host": "h", "space": "s", "machine": "m", "boot": "first"}
    assert locks.is_dead(owner, 0.0, 60.0)
    assert not locks.is_dead({**owner, "machine": "another"}, 0.0, 60.0)
    # Without a machine's own name nothing is known.
    monkeypatch.setattr(locks, "_here", lambda: {"host": "h", "space": "s", "machine": "", "boot": "second"})
    assert not locks.is_dead({**owner, "machine": ""}, 0.0, 60.0)


@pytest.mark.parametrize("content", ["", "nonsense", "[]", '{"pid": "x", "host": null}'])
def test_a_damaged_lock_file_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setattr(locks, "DEAD_SECONDS", 0.2)
    (tmp_path / "x.lock").write_text(content)
    with lock(tmp_path / "x.lock", wait_seconds=5):
        pass


def test_the_heart_beats_and_notices_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.05)
    path = tmp_path / "x.lock"
    with lock(path):
        os.utime(path, (1, 1))
        time.sleep(0.3)
        assert path.stat().st_mtime > 1
        foreign(path)
        time.sleep(0.3)
    assert "lost the lock" in caplog.text
    assert path.exists()  # it is somebody else's by now


def test_processes_exclude_each_other(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    children = [subprocess.Popen([sys.executable, "-c", COUNT, str(counter), "40"]) for _ in range(4)]
    assert [child.wait(120) for child in children] == [0] * 4
    assert counter.read_text() == "160"


def test_threads_exclude_each_other(tmp_path: Path) -> None:
    total = 0

    def count() -> None:
        nonlocal total
        for _ in range(20):
            with lock(tmp_path / "x.lock"):
                seen = total
                time.sleep(0.0005)
                total = seen + 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total == 80


def test_of_many_waiting_for_a_dead_owner_one_follows(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    for _ in range(5):
        foreign(counter.with_suffix(".lock"), pid=2**30, **locks._here())
        children = [subprocess.Popen([sys.executable, "-c", COUNT, str(counter), "2"]) for _ in range(4)]
        assert [child.wait(120) for child in children] == [0] * 4
    assert counter.read_text() == "40"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x.lock", Path("/proc/nothing/x.lock")):
        with pytest.raises(ArtifactError, match="cannot write"), lock(path):
            pass


def test_a_draft_that_cannot_be_deleted_does_not_keep_the_lock_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(os, "unlink", failing)
        broken.setattr(os, "scandir", failing)
        with lock(tmp_path / "x.lock"):
            broken.undo()
    with lock(tmp_path / "x.lock", wait_seconds=0):
        pass


def test_a_lock_that_cannot_be_deleted_hides_no_reason_and_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.lock"
    with monkeypatch.context() as broken:
        with pytest.raises(ValueError, match="mine"), lock(path):
            broken.setattr(os, "unlink", failing)
            raise ValueError("mine")
        with pytest.raises(ArtifactError, match=r"cannot write .*x\.lock: Read-only"), lock(path, wait_seconds=0):
            pass
    with lock(path, wait_seconds=0):
        pass
    assert not path.exists()


def failing(path: Path) -> None:
    """As on a disk that the kernel made read-only after an error."""
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
