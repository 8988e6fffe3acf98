"""One writer per fingerprint, between processes (`lock`) and between machines (`remote_lock`).

Every lock names its owner, whose heartbeat renews it. An owner is dead when its process is gone from this machine, or
when it runs on another one and its heartbeat has stood still for a while, by the clock of the one who waits.

A local lock is a file. A remote lock is a folder of numbered objects: its holder is the owner of the highest number. A
number is taken by writing its object where there is none, which S3, Google Cloud Storage and Azure decide atomically,
and whoever succeeds a dead owner takes the next one. So nothing is renamed or deleted that somebody else may have
written in between. A store that cannot refuse the second writer of an object is found out and named.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paraclip_core.errors import ArtifactError, LockedError
from storage.files import parse_json, storage_errors, sweep_drafts

if TYPE_CHECKING:
    from storage.object_store import RemoteFolder

__all__ = [
    "Owner",
    "Ticket",
    "is_dead",
    "living_owner",
    "lock",
    "owner_name",
    "parse_owner",
    "remote_lock",
    "this_process",
]

log = logging.getLogger(__name__)

BEAT_SECONDS, DEAD_SECONDS = 5.0, 60.0
REMOTE_BEAT_SECONDS, REMOTE_DEAD_SECONDS = 20.0, 120.0
UNHEARD_SECONDS = 2.0
"""After a heartbeat that did not arrive the next one comes soon: it may find that another machine has gone on."""
STALE_SECONDS = 3600.0
"""Who looks once sees how old the last heartbeat is by two machines' clocks. An S3 server takes clocks that are up to
fifteen minutes off, so two machines' may differ by thirty."""
PAUSES, REMOTE_PAUSES = (0.005, 0.2), (0.5, 10.0)
"""Seconds between two tries: the first pause and the longest one."""
_left: set[str] = set()
"""Tokens of locks that this living process no longer holds but could not delete, so it would wait for itself."""

Owner = Mapping[str, Any]


@contextmanager
def lock(
    path: Path,
    wait_seconds: float | None = None,
    poll: Callable[[], None] | None = None,
    confirm: bool = False,
    info: Owner | None = None,
) -> Iterator[None]:
    """Hold the lock file `path`; take it over from a dead owner, wait for a living one.

    Args:
        path: the lock file.
        wait_seconds: give up after this long; None waits for ever.
        poll: called between two tries, for progress or for giving up by an exception of its own.
        confirm: do not give up before it is known whether the owner lives, which takes a minute at most.
        info: what else the lock tells about its owner, as plain values.

    Raises:
        LockedError: the owner lives and the time is over; the text names the owner.
        ArtifactError: the folder cannot be written.
    """
    me = {"token": uuid.uuid4().hex, **this_process(), **(info or {})}
    _wait(partial(_try_lock, path, me, _Watch(), confirm), str(path), wait_seconds, poll, PAUSES)
    try:
        with _beating(BEAT_SECONDS, partial(_renew, path, me["token"]), path.name):
            yield
    finally:
        _release(path, me["token"])


def _try_lock(path: Path, me: Owner, watch: _Watch, confirm: bool) -> Owner | None:
    """Take the lock, from a dead owner, too; None where it is taken, else its living owner."""
    while not _create(path, me):
        owner = _owner(path)
        silent = watch.silence((owner.get("token"), _beat_time(path)))
        if owner.get("token") in _left or is_dead(owner, silent, DEAD_SECONDS):
            _take_over(path, owner)
            continue
        # How long it has been silent does not matter where the process can be looked for.
        settled = not confirm or watch.signs > 1 or not is_dead(owner, math.inf, DEAD_SECONDS)
        return owner if settled else {}
    return None


def _renew(path: Path, token: str) -> float:
    """Beat once; seconds until the next beat, 0 where the lock is another's by now."""
    if _owner(path).get("token") != token:
        log.error("lost the lock %s", path)
        return 0
    try:
        os.utime(path)
    except OSError as error:
        log.warning("cannot renew the lock %s: %s", path, error)
    return BEAT_SECONDS


@contextmanager
def remote_lock(
    remote: RemoteFolder,
    folder: str,
    wait_seconds: float | None = None,
    poll: Callable[[], None] | None = None,
    info: Owner | None = None,
) -> Iterator[Ticket]:
    """Hold the lock whose objects lie in `folder` of an object store; gives what knows whether it is held still.

    The other arguments and the errors are those of :func:`lock`.
    """
    ticket = Ticket(remote, folder, info or {})
    _wait(ticket.attempt, remote.name(folder), wait_seconds, poll, REMOTE_PAUSES)
    try:
        with _beating(REMOTE_BEAT_SECONDS, ticket.beat, folder):
            yield ticket
    finally:
        ticket.release()


def _wait(
    attempt: Callable[[], Owner | None],
    name: str,
    wait_seconds: float | None,
    poll: Callable[[], None] | None,
    pauses: tuple[float, float],
) -> None:
    """Attempt until the lock is had (None) or the living owner is given up; no owner means another attempt."""
    (pause, longest), started, announced = pauses, time.monotonic(), False
    while (owner := attempt()) is not None:
        if owner and wait_seconds is not None and time.monotonic() - started >= wait_seconds:
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
def _beating(seconds: float, beat: Callable[[], float], name: str) -> Iterator[None]:
    """Call `beat` in a thread, first after so many seconds and then after what it gives, until the block ends or 0."""
    stop = threading.Event()

    def run() -> None:
        pause = seconds
        while pause and not stop.wait(pause):
            pause = beat()

    thread = threading.Thread(target=run, name=f"lock-{name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class _Watch:
    """How long an owner has shown no new sign of life, by this process's clock."""

    def __init__(self) -> None:
        self.signs, self._last, self._since = 0, None, 0.0

    def silence(self, sign: Any) -> float:
        now = time.monotonic()
        if sign != self._last:
            self._last, self._since, self.signs = sign, now, self.signs + 1
        return now - self._since


# The lock file


def _create(path: Path, me: Owner) -> bool:
    draft = path.with_name(f"{path.name}.{me['token']}")
    with storage_errors(path):
        if path.exists():
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        # The content is written first and linked second, so no other process sees a lock without an owner.
        try:
            draft.write_text(json.dumps(dict(me)))
            os.link(draft, path)
        except FileExistsError:
            return False
        finally:
            # The lock is held by now, or the disk is at fault, which the error on its way says.
            with suppress(OSError):
                draft.unlink()
    # Drafts of processes that were killed before they held the lock.
    sweep_drafts(path.parent, f"{path.name}.{'[0-9a-f]' * 32}", STALE_SECONDS)
    return True


def _release(path: Path, token: str) -> None:
    """Delete the lock, unless it is another's by now. Where that fails, this must not hide why the work failed."""
    try:
        if parse_owner(path.read_bytes()).get("token") == token:
            path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        _left.add(token)
        log.warning("cannot delete the lock %s: %s", path, error)


def _take_over(path: Path, owner: Owner) -> None:
    """Delete a dead owner's lock, unless somebody else has taken it over in between."""
    with storage_errors(path), suppress(FileNotFoundError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            # The processes of this machine look and delete one after another. Some network file systems cannot do
            # this; what is left there is a race of microseconds.
            with suppress(OSError):
                fcntl.flock(folder, fcntl.LOCK_EX)
            if _owner(path).get("token") == owner.get("token"):
                path.unlink()
                log.warning("took over the lock %s of dead %s", path, owner_name(owner))
        finally:
            os.close(folder)


def _owner(path: Path) -> Owner:
    try:
        return parse_owner(path.read_bytes())
    except OSError:
        return {}


def _beat_time(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


# The numbered objects


class Ticket:
    """A number of the remote lock, taken or to be taken."""

    def __init__(self, remote: RemoteFolder, folder: str, info: Owner) -> None:
        self._remote, self._folder = remote, folder
        self._me = {"token": uuid.uuid4().hex, **this_process(), **info}
        self._number = self._beats = 0
        self._watch, self.lost = _Watch(), False

    def attempt(self) -> Owner | None:
        """Take the next number if the last one's owner is dead or gone; None where it is taken."""
        owners = self._owners()
        number = max(owners, default=0)
        owner = owners.get(number, {})
        silent = self._watch.silence((number, owner.get("token"), owner.get("beats")))
        if owner and not is_dead(owner, silent, REMOTE_DEAD_SECONDS):
            return owner
        return None if self._take(owners) else {}

    def beat(self) -> float:
        """Say that the owner lives; a heart that cannot be heard is not a reason to stop working.

        Gives the seconds to the next one.
        """
        self._beats += 1
        try:
            if self.holds():
                self._remote.write(self._path(self._number), self._content())
            elif not self.lost:
                # Not written any more: the number may be somebody else's by now, who would lose the lock by it.
                self.lost = True
                log.error("lost the lock %s to another machine", self._remote.name(self._folder))
        except ArtifactError as error:
            log.warning("cannot renew the lock: %s", error)
            return min(UNHEARD_SECONDS, REMOTE_BEAT_SECONDS)
        return REMOTE_BEAT_SECONDS

    def release(self) -> None:
        """Give the number and those before it back, unless somebody took a later one."""
        try:
            if self.holds():
                # The own number last: until then nobody takes the first one anew.
                self._remote.delete([self._path(number) for number in range(1, self._number + 1)])
        except ArtifactError as error:
            log.warning("the lock could not be given back, others will wait until it counts as dead: %s", error)

    def holds(self) -> bool:
        """Whether nobody has taken a later number."""
        owners = self._owners()
        return bool(owners) and owners[max(owners)].get("token") == self._me["token"]

    def _take(self, before: Mapping[int, Owner]) -> bool:
        self._number = max(before, default=0) + 1
        mine = self._path(self._number)
        if not self._remote.create(mine, self._content()):
            return False
        if self._remote.create(mine, self._content()):
            log.warning(
                "%s cannot tell two writers apart: see to it that no two machines make the same artifact at once",
                self._remote.url,
            )
        expected = {self._me["token"], *(owner.get("token") for owner in before.values())}
        if not self.holds() or any(owner.get("token") not in expected for owner in self._owners().values()):
            # Somebody else came in between, after the one who was there had gone.
            self._remote.delete([mine])
            return False
        for owner in before.values():
            log.warning("took over the lock of dead %s", owner_name(owner))
        return True

    def _owners(self) -> dict[int, Owner]:
        names = [name for name in self._remote.sizes(self._folder) if name.isdecimal()]
        contents = self._remote.read_all(f"{self._folder}/{name}" for name in names)
        return {int(path.rpartition("/")[2]): parse_owner(data) for path, data in contents.items()}

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number:08d}"

    def _content(self) -> bytes:
        # Who waits goes by the beats; who looks once, by the time.
        return json.dumps({**self._me, "beats": self._beats, "time": round(time.time())}).encode()


# Owners


def this_process() -> dict[str, Any]:
    """What a lock says about its owner: process number, start time, machine, its start and container."""
    return {"pid": os.getpid(), "started": _started(os.getpid()), **_here()}


def parse_owner(data: bytes) -> Owner:
    """What a lock's content says about its owner; nothing where it is torn or something else."""
    try:
        owner = parse_json(data)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def living_owner(path: Path) -> Owner | None:
    """What the lock file `path` says about its owner; None where it is not held, or its owner is surely dead."""
    owner, beat = _owner(path), _beat_time(path)
    if beat is None or is_dead(owner, time.time() - beat / 1e9, STALE_SECONDS):
        return None
    return owner


def is_dead(owner: Owner, silent_seconds: float, limit: float) -> bool:
    """Whether an owner's process is gone from this machine, or is on another one and has been silent over the limit."""
    here = _here()
    differing = {key for key, value in here.items() if owner.get(key) != value}
    if not differing and isinstance(owner.get("pid"), int):
        return _started(owner["pid"]) != owner.get("started")
    if differing == {"boot"} and here["machine"] and here["boot"] and owner.get("boot"):
        # This machine was started anew since.
        return True
    return silent_seconds > limit


def _here() -> dict[str, str]:
    """Where process numbers mean the same: the machine since it was started, and the container if it is one."""
    place = {"host": socket.gethostname(), "space": "", "machine": "", "boot": ""}
    with suppress(OSError):
        place["space"] = str(Path("/proc/self/ns/pid").readlink())
    # Machines often have the same name, and outside of containers the same name space of processes, too.
    for name, path in (("machine", "/etc/machine-id"), ("boot", "/proc/sys/kernel/random/boot_id")):
        with suppress(OSError):
            place[name] = Path(path).read_text().strip()
    return place


def _started(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot, None where there is no such living process."""
    if Path("/proc/self").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in ("Z", "X") else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"


def owner_name(owner: Owner) -> str:
    """An owner's process and machine, for people."""
    return f"process {owner.get('pid')} on {owner.get('host')}"
