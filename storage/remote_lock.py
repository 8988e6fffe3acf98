"""One writer per fingerprint between machines: lock objects, as far as the object store allows them.

The lock is a folder of numbered objects. A number is taken by writing its object where there is none, which S3, Google
Cloud Storage and Azure decide atomically, and the holder is the owner of the highest number. So whoever succeeds a dead
owner takes the next number, and nothing is ever renamed or deleted that somebody else may have written in between. A
store that cannot refuse the second writer of an object is found out and named: there, one writer per fingerprint must
be ensured from outside.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from paraclip_core.errors import ArtifactError, LockedError
from storage.locks import is_dead, parse_owner, this_process
from storage.object_store import RemoteFolder

__all__ = ["remote_lock"]

log = logging.getLogger(__name__)

BEAT_SECONDS = 20.0
DEAD_SECONDS = 120.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0


@contextmanager
def remote_lock(
    remote: RemoteFolder,
    folder: str,
    wait_seconds: float | None = None,
    poll: Callable[[], None] | None = None,
    says: Mapping[str, Any] | None = None,
) -> Iterator[Callable[[], bool]]:
    """Hold the lock whose objects lie in `folder`; gives what asks the store whether it is held still.

    A dead owner is succeeded: one whose process is gone from this machine, or whose heartbeat has stood still for two
    minutes by the clock of the one who waits. A living owner is waited for.

    Args:
        remote: the object store.
        folder: the lock's folder in it.
        wait_seconds: give up after this long; None waits for ever.
        poll: called between two tries.
        says: what else the lock tells about its owner, as plain values.

    Raises:
        LockedError: the owner lives and the time is over.
        ArtifactError: the store cannot be used.
    """
    ticket = _Ticket(remote, folder, says or {})
    ticket.acquire(wait_seconds, poll)
    stop = threading.Event()
    beat = threading.Thread(target=ticket.beat, args=(stop,), name=f"lock-{folder}", daemon=True)
    beat.start()
    try:
        yield ticket.holds
    finally:
        stop.set()
        beat.join()
        ticket.release()


class _Ticket:
    """A number of the lock, taken or to be taken."""

    def __init__(self, remote: RemoteFolder, folder: str, says: Mapping[str, Any]) -> None:
        self._remote, self._folder = remote, folder
        self._me = {"token": uuid.uuid4().hex, **this_process(), **says}
        self._number = 0
        self._beats = 0

    def acquire(self, wait_seconds: float | None, poll: Callable[[], None] | None) -> None:
        started, pause, told = time.monotonic(), FIRST_PAUSE_SECONDS, False
        seen: tuple[Any, ...] = ()
        since = started
        while True:
            owners = self._owners()
            number = max(owners, default=0)
            owner = owners.get(number, {})
            sign = (number, owner.get("token"), owner.get("beats"))
            if sign != seen:
                seen, since = sign, time.monotonic()
            if not owner or is_dead(owner, time.monotonic() - since, DEAD_SECONDS):
                if self._take(owners):
                    return
            elif wait_seconds is not None and time.monotonic() - started >= wait_seconds:
                raise LockedError(
                    f"{self._remote.name(self._folder)} is held by process {owner.get('pid')} on {owner.get('host')}; "
                    "wait for it to end"
                )
            elif not told:
                log.info("waiting for process %s on %s", owner.get("pid"), owner.get("host"))
                told = True
            if poll is not None:
                poll()
            # Two who keep getting in each other's way must not do so in step.
            time.sleep(pause * random.uniform(0.7, 1.3))
            pause = min(1.5 * pause, LONGEST_PAUSE_SECONDS)

    def beat(self, stop: threading.Event) -> None:
        """Say now and then that the owner lives; a heart that cannot be heard is not a reason to stop working."""
        lost = False
        while not stop.wait(BEAT_SECONDS):
            self._beats += 1
            try:
                if self.holds():
                    self._remote.write(self._path(self._number), self._content())
                elif not lost:
                    # Not written any more: the number may be somebody else's by now, who would lose the lock by it.
                    lost = True
                    log.error("lost the lock %s to another machine", self._remote.name(self._folder))
            except ArtifactError as error:
                log.warning("cannot renew the lock: %s", error)

    def release(self) -> None:
        """Give the number and those before it back, unless somebody took a later one."""
        try:
            if self.holds():
                # The own number last: until then nobody takes the first one anew.
                self._remote.delete([self._path(number) for number in range(1, self._number + 1)])
        except ArtifactError as error:
            log.warning("the lock could not be given back, others will wait until it counts as dead: %s", error)

    def _take(self, seen: dict[int, dict[str, Any]]) -> bool:
        self._number = max(seen, default=0) + 1
        mine = self._path(self._number)
        if not self._remote.create(mine, self._content()):
            return False
        if self._remote.create(mine, self._content()):
            log.warning(
                "%s cannot tell two writers apart: see to it that no two machines make the same artifact at once",
                self._remote.url,
            )
        known = {self._me["token"], *(owner.get("token") for owner in seen.values())}
        if not self.holds() or any(owner.get("token") not in known for owner in self._owners().values()):
            # Somebody else came in between, after the one who was there had gone.
            self._remote.delete([mine])
            return False
        for owner in seen.values():
            log.warning("took over the lock of dead process %s on %s", owner.get("pid"), owner.get("host"))
        return True

    def holds(self) -> bool:
        """Whether nobody has taken a later number."""
        owners = self._owners()
        return bool(owners) and owners[max(owners)].get("token") == self._me["token"]

    def _owners(self) -> dict[int, dict[str, Any]]:
        names = [name for name in self._remote.sizes(self._folder) if name.isdecimal()]
        told = self._remote.read_all(f"{self._folder}/{name}" for name in names)
        return {int(path.rpartition("/")[2]): parse_owner(data) for path, data in told.items()}

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number:08d}"

    def _content(self) -> bytes:
        # Who waits goes by the beats; who looks once, by the time.
        return json.dumps({**self._me, "beats": self._beats, "time": round(time.time())}).encode()
