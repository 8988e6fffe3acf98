"""Leases between machines that share nothing but an object store."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from paraclip.storage import locks
from paraclip.storage.remote_store import RemoteStore
from paraclip_core.errors import LockedError
from tests.kit.machines import Machine, Objects

pytestmark = pytest.mark.usefixtures("hasty")


def lease_at(store: RemoteStore, **options: Any) -> Any:
    return locks.lease(store.remote, "locks/x", **options)


def stranger(objects: Objects, number: int = 1, **owner: Any) -> None:
    lease = {"token": "theirs", "pid": 7, "host": "elsewhere", "time": 0.0, **owner}
    objects.write(f"locks/x/{number:08d}", json.dumps(lease).encode())


def test_a_living_owner_is_waited_for(machine: Machine) -> None:
    store, order = machine("one"), []

    def second() -> None:
        with lease_at(store):
            order.append("second")

    with lease_at(store):
        thread = threading.Thread(target=second)
        thread.start()
        # Much longer than a dead owner is waited for: the heart beats.
        thread.join(2)
        order.append("first")
    thread.join(120)
    assert order == ["first", "second"]


def test_a_silent_owner_is_succeeded(machine: Machine, objects: Objects, caplog: pytest.LogCaptureFixture) -> None:
    stranger(objects)
    with lease_at(machine("one")):
        assert objects.names("locks") == ["locks/x/00000001", "locks/x/00000002"]
    assert "took over from process 7 on elsewhere, which is silent" in caplog.text
    assert objects.names("locks") == []


def test_giving_up_names_the_owner(machine: Machine, objects: Objects, url: str) -> None:
    stranger(objects)
    with (
        pytest.raises(LockedError, match=rf"{url}/locks/x is held by process 7 on elsewhere"),
        lease_at(machine("one"), wait_seconds=0),
    ):
        pytest.fail("it was held")


def test_of_many_one_at_a_time(machine: Machine, objects: Objects) -> None:
    store, inside, most = machine("one"), [], []
    stranger(objects)

    def work() -> None:
        with lease_at(store):
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


def test_who_lost_the_lock_does_not_take_it_from_its_next_owner(
    machine: Machine, objects: Objects, caplog: pytest.LogCaptureFixture
) -> None:
    """A machine slept, was succeeded by one that has finished since, and the next one got the same number."""
    with lease_at(machine("one")):
        stranger(objects)
        threading.Event().wait(0.3)
        assert json.loads(objects.read("locks/x/00000001"))["token"] == "theirs"
    assert "lost the lease" in caplog.text
    assert objects.names("locks") == ["locks/x/00000001"]
