"""One writer at a time, between the processes of a machine (`lock`) and between machines (`lease`).

A lock is the kernel's, on a file (flock): it is free at once when its process ends, however that ends. The file names
its owner, for people; nobody takes a lock because of what it says.

A lease is a folder of numbered objects: its holder is the owner of the highest number, who renews it. A number is taken
by writing its object where there is none, which S3, Google Cloud Storage and Azure decide atomically; one whose holder
has been silent for a while, by the clock of the one who waits, is succeeded by taking the next number. So nothing is
renamed or deleted that somebody else may have written in between.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paraclip.storage.files import parse_json
from paraclip_core.errors import ArtifactError, LockedError

if TYPE_CHECKING:
    from paraclip.storage.object_store import RemoteFolder

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS, DEAD_SECONDS = 20.0, 120.0
"""Seconds between renewals of a lease, and seconds of silence after which another machine takes it over."""
UNHEARD_SECONDS = 2.0
"""Seconds to the next heartbeat after one that failed: it may find that another machine has taken over."""
PAUSES, LEASE_PAUSES = (0.005, 0.2), (0.5, 10.0)
"""Seconds between two tries: the first pause and the longest one."""

Owner = Mapping[str, Any]
Poll = Callable[[], None]


@contextmanager
def lock(path: Path, wait_seconds: float | None = None, poll: Poll | None = None) -> Iterator[None]:
    """Hold the lock file `path`, which names its owner and is deleted at the end.

    It raises LockedError after `wait_seconds`. `poll` is called between two tries and may raise an error of its own.
    """
    descriptors: list[int] = []

    def attempt() -> Owner | None:
        descriptors.extend(_try_lock(path))
        return None if descriptors else _read_owner(path) or {"pid": "?"}

    _wait(attempt, str(path), wait_seconds, poll, PAUSES)
    try:
        yield
    finally:
        _free(path, descriptors[0])


def _try_lock(path: Path) -> list[int]:
    """The descriptor in a list, which is empty if the lock is held."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return []
        raise ArtifactError(
            f"cannot lock {path}: {error.strerror}; the root needs a file system with flock, which a local disk "
            "and most network folders have"
        ) from error
    if os.fstat(descriptor).st_nlink == 0:
        # Its last owner has deleted it since it was opened, and somebody else may have made it again.
        os.close(descriptor)
        return []
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps(_this_process()).encode())
    except BaseException:
        _free(path, descriptor)
        raise
    return [descriptor]


def _free(path: Path, descriptor: int) -> None:
    # While it is held: a process that waits on this very file sees that it is gone, and makes another one.
    with suppress(OSError):
        path.unlink()
    # A process that was forked meanwhile has the descriptor, too.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _wait(
    attempt: Callable[[], Owner | None],
    name: str,
    wait_seconds: float | None,
    poll: Poll | None,
    pauses: tuple[float, float],
) -> None:
    """Attempt until the lock is acquired (None) or the wait is over; an empty owner means another attempt."""
    (pause, longest), started, announced = pauses, time.monotonic(), False
    while (owner := attempt()) is not None:
        # Once is not enough: its owner may just have deleted the file.
        if pause > pauses[0] and owner and wait_seconds is not None and time.monotonic() - started >= wait_seconds:
            raise LockedError(f"{name} is held by {owner_name(owner)}; wait for it to end")
        if owner and not announced and pause >= longest:
            log.info("waiting for %s, which holds %s", owner_name(owner), name)
            announced = True
        if poll is not None:
            poll()
        # Two who keep getting in each other's way must not do so in step.
        time.sleep(pause * random.uniform(0.7, 1.3))
        pause = min(1.4 * pause, longest)


@contextmanager
def lease(
    remote: RemoteFolder, folder: str, wait_seconds: float | None = None, poll: Poll | None = None
) -> Iterator[Lease]:
    """Hold the lease whose objects lie in `folder` of an object store; otherwise as :func:`lock`."""
    numbered = Lease(remote, folder)
    _wait(numbered.attempt, remote.name(folder), wait_seconds, poll, LEASE_PAUSES)
    stop = threading.Event()

    def renew() -> None:
        pause = HEARTBEAT_SECONDS
        while not numbered.lost and not stop.wait(pause):
            pause = numbered.renew()

    thread = threading.Thread(target=renew, name=f"lease-{folder}", daemon=True)
    thread.start()
    try:
        yield numbered
    finally:
        stop.set()
        thread.join()
        numbered.release()


class Lease:
    """A number of a lease, taken or to be taken."""

    def __init__(self, remote: RemoteFolder, folder: str) -> None:
        self._remote, self._folder = remote, folder
        self._me = {"token": uuid.uuid4().hex, **_this_process()}
        self._number, self.lost = 0, False
        self._sign: tuple[Any, ...] = ()
        self._since = 0.0

    def attempt(self) -> Owner | None:
        """Take the next number if the last one's owner is silent or gone; None if that succeeded, else the owner."""
        owners = self._owners()
        last = max(owners, default=0)
        owner = owners.get(last, {})
        sign = last, owner.get("token"), owner.get("time")
        if sign != self._sign:
            self._sign, self._since = sign, time.monotonic()
        if owner and time.monotonic() - self._since <= DEAD_SECONDS:
            return owner
        self._number = last + 1
        if not self._remote.create(self._path(self._number), self._content()):
            return {}
        if not self.holds():
            # Somebody else came in between, after the one who was there had gone.
            self._remote.delete([self._path(self._number)])
            return {}
        for previous in owners.values():
            log.warning("took over from %s, which is silent", owner_name(previous))
        return None

    def renew(self) -> float:
        """Report that the owner is alive; returns the seconds to the next time. A failure is no reason to stop."""
        try:
            if self.holds():
                self._remote.write(self._path(self._number), self._content())
            else:
                # Not written any more: the number may be somebody else's by now, and a write would lose them the lease.
                self.lost = True
                log.error("lost the lease %s to another machine", self._remote.name(self._folder))
        except ArtifactError as error:
            log.warning("cannot renew the lease: %s", error)
            return min(UNHEARD_SECONDS, HEARTBEAT_SECONDS)
        return HEARTBEAT_SECONDS

    def release(self) -> None:
        """Give back the number and those before it, unless somebody took a later one."""
        try:
            if self.holds():
                # Its own number last: until then nobody takes the first one again.
                self._remote.delete([self._path(number) for number in range(1, self._number + 1)])
        except ArtifactError as error:
            log.warning("the lease could not be given back, others will wait until it counts as dead: %s", error)

    def holds(self) -> bool:
        """Whether nobody has taken a later number."""
        owners = self._owners()
        return bool(owners) and owners[max(owners)].get("token") == self._me["token"]

    def _owners(self) -> dict[int, Owner]:
        names = [name for name in self._remote.sizes(self._folder) if name.isdecimal()]
        contents = self._remote.read_all(f"{self._folder}/{name}" for name in names)
        return {int(path.rpartition("/")[2]): parse_owner(data) for path, data in contents.items()}

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number:08d}"

    def _content(self) -> bytes:
        # A waiter watches for changes of the time, because clocks differ.
        return json.dumps({**self._me, "time": time.time()}).encode()


def _this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname()}


def parse_owner(data: bytes) -> Owner:
    """What a lock's content says about its owner; empty if it is truncated or something else."""
    try:
        owner = parse_json(data)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _read_owner(path: Path) -> Owner:
    try:
        return parse_owner(path.read_bytes())
    except OSError:
        return {}


def owner_name(owner: Owner) -> str:
    """An owner's process and machine, human-readable."""
    return f"process {owner.get('pid')} on {owner.get('host')}"
