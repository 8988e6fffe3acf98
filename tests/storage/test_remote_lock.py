"""Locks between machines that share nothing but an object store."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from machines import Machine, Objects

from paraclip_core.errors import LockedError
from storage import locks
from storage.remote import RemoteStore


def lock_at(store: RemoteStore, **options: Any) -> Any:
    return locks.remote_lock(store.remote, "locks/x", **options)


def stranger(objects: Objects, number: int = 1, **owner: Any) -> None:
    told = {"token": "theirs", "pid": 7, "host": "elsewhere", "space": "", "started": "1", "beats": 0, **owner}
    objects.write(f"locks/x/{number:08d}", json.dumps(told).encode())


@pytest.mark.usefixtures("hasty")
def test_a_living_owner_is_waited_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    # Else a look at this process, which lives, would do without any heartbeat.
    elsewhere = {"pid": 7, "host": "elsewhere", "space": "", "started": "1"}
    monkeypatch.setattr(locks, "this_process", lambda: elsewhere)
    store, order = machine("one"), []

    def second() -> None:
        with lock_at(store):
            order.append("second")

    with lock_at(store):
        thread = threading.Thread(target=second)
        thread.start()
        # Much longer than a dead owner is waited for: the heart beats.
        thread.join(2)
        order.append("first")
    thread.join(120)
    assert order == ["first", "second"]


@pytest.mark.usefixtures("hasty")
def test_a_silent_owner_is_succeeded(machine: Machine, objects: Objects, caplog: pytest.LogCaptureFixture) -> None:
    stranger(objects)
    with lock_at(machine("one")):
        assert objects.names("locks") == ["locks/x/00000001", "locks/x/00000002"]
    assert "took over the lock of dead process 7 on elsewhere" in caplog.text
    assert objects.names("locks") == []


@pytest.mark.usefixtures("hasty")
def test_giving_up_names_the_owner(machine: Machine, objects: Objects, url: str) -> None:
    stranger(objects)
    with (
        pytest.raises(LockedError, match=rf"{url}/locks/x is held by process 7 on elsewhere"),
        lock_at(machine("one"), wait_seconds=0),
    ):
        pytest.fail("it was held")


@pytest.mark.usefixtures("hasty")
def test_a_process_of_this_machine_that_is_gone_is_succeeded_at_once(
    machine: Machine, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    from storage.locks import this_process

    monkeypatch.setattr(locks, "REMOTE_DEAD_SECONDS", 1000.0)
    stranger(objects, **{**this_process(), "pid": 2**30})
    with lock_at(machine("one"), wait_seconds=0):
        pass


@pytest.mark.usefixtures("hasty")
def test_of_many_one_at_a_time(machine: Machine, objects: Objects) -> None:
    store, inside, most = machine("one"), [], []
    stranger(objects)

    def work() -> None:
        with lock_at(store):
            inside.append(1)
            most.append(len(inside))
            threading.Event().wait(0.02)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert most == [1] * 6
    assert objects.names("locks") == []


@pytest.mark.usefixtures("hasty")
def test_a_store_that_lets_anyone_write_is_found_out(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = machine("one")
    remote = store.remote
    monkeypatch.setattr(remote, "create", lambda path, data: remote.write(path, data) is None)
    with lock_at(store):
        pass
    assert "cannot tell two writers apart" in caplog.text


@pytest.mark.usefixtures("hasty")
def test_who_lost_the_lock_does_not_take_it_from_its_next_owner(
    machine: Machine, objects: Objects, caplog: pytest.LogCaptureFixture
) -> None:
    """A machine slept, was succeeded by one that has finished since, and the next one got the same number."""
    with lock_at(machine("one")):
        stranger(objects)
        threading.Event().wait(0.3)
        assert json.loads(objects.read("locks/x/00000001"))["token"] == "theirs"
    assert "lost the lock" in caplog.text
    assert objects.names("locks") == ["locks/x/00000001"]
