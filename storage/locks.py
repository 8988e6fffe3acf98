"""One writer per fingerprint: a lock file with an owner and a heartbeat."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from paraclip_core.errors import LockedError
from storage.files import parse_json, storage_error, sweep_drafts

__all__ = ["is_dead", "living_owner", "lock", "parse_owner", "this_process"]

log = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
DEAD_SECONDS = 60.0
STALE_SECONDS = 600.0
"""Who looks once sees how old the last heartbeat is by two machines' clocks, which may differ by some minutes."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.005, 0.2
_left: set[str] = set()
"""Tokens of locks that this living process no longer holds but could not delete, so it would wait for itself."""


@contextmanager
def lock(
    path: Path,
    wait_seconds: float | None = None,
    poll: Callable[[], None] | None = None,
    judge: bool = False,
    says: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Hold the lock file `path`; a dead owner's lock is taken over, a living owner's is waited for.

    An owner is dead when its process is gone from this machine, or when it runs on another one and its heartbeat has
    stood still for a minute, by the clock of the one who waits.

    Args:
        path: the lock file.
        wait_seconds: give up after this long; None waits for ever.
        poll: called between two tries, for progress or for giving up by an exception of its own.
        judge: do not give up before it is known whether the owner lives, which takes a minute at most.
        says: what else the lock tells about its owner, as plain values.

    Raises:
        LockedError: the owner lives and the time is over; the text names the owner.
        ArtifactError: the folder cannot be written.
    """
    token = uuid.uuid4().hex
    _acquire(path, {"token": token, **this_process(), **(says or {})}, wait_seconds, poll, judge)
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(path, token, stop), name=f"lock-{path.name}", daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        _let_go(path, token)


def _let_go(path: Path, token: str) -> None:
    """Delete the lock, unless it is another's by now. Where that fails, this must not hide why the work failed."""
    try:
        if parse_owner(path.read_bytes()).get("token") == token:
            path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        _left.add(token)
        log.warning("cannot delete the lock %s: %s", path, error)


def _acquire(
    path: Path, me: Mapping[str, Any], wait_seconds: float | None, poll: Callable[[], None] | None, judge: bool
) -> None:
    started, told, pause = time.monotonic(), False, FIRST_PAUSE_SECONDS
    last_sign: tuple[Any, ...] = ()
    sign_seen, signs = started, 0
    while not _create(path, me):
        owner = _owner(path)
        sign = (owner.get("token"), _beat(path))
        if sign != last_sign:
            last_sign, sign_seen, signs = sign, time.monotonic(), signs + 1
        if owner.get("token") in _left or is_dead(owner, time.monotonic() - sign_seen, DEAD_SECONDS):
            _take_over(path, owner)
            continue
        # How long it has been silent does not matter where the process can be looked for.
        known = not judge or signs > 1 or not is_dead(owner, math.inf, DEAD_SECONDS)
        if known and wait_seconds is not None and time.monotonic() - started >= wait_seconds:
            raise LockedError(
                f"{path} is held by process {owner.get('pid')} on {owner.get('host')}; wait for it to end"
            )
        if not told and pause >= LONGEST_PAUSE_SECONDS:
            log.info("waiting for process %s on %s, which holds %s", owner.get("pid"), owner.get("host"), path)
            told = True
        if poll is not None:
            poll()
        time.sleep(pause)
        pause = min(1.3 * pause, LONGEST_PAUSE_SECONDS)


def _create(path: Path, me: Mapping[str, Any]) -> bool:
    draft = path.with_name(f"{path.name}.{me['token']}")
    try:
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
    except OSError as error:
        raise storage_error(error, path) from error
    # Drafts of processes that were killed before they held the lock.
    sweep_drafts(path.parent, f"{path.name}.{'[0-9a-f]' * 32}", STALE_SECONDS)
    return True


def parse_owner(data: bytes) -> dict[str, Any]:
    """What a lock's content says about its owner; nothing where it is torn or something else."""
    try:
        owner = parse_json(data)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def living_owner(path: Path) -> dict[str, Any] | None:
    """What the lock file `path` says about its owner; None where it is not held, or its owner is surely dead."""
    owner, beat = _owner(path), _beat(path)
    if beat is None or is_dead(owner, time.time() - beat / 1e9, STALE_SECONDS):
        return None
    return owner


def this_process() -> dict[str, Any]:
    """What a lock says about its owner: process number, start time, machine, its start and container."""
    return {"pid": os.getpid(), "started": _started(os.getpid()), **_here()}


def _here() -> dict[str, str]:
    """Where process numbers mean the same: the machine since it was started, and the container if it is one."""
    space = ""
    with suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
    # Machines often have the same name, and outside of containers the same name space of processes, too.
    machine, boot = _text(Path("/etc/machine-id")), _text(Path("/proc/sys/kernel/random/boot_id"))
    return {"host": socket.gethostname(), "space": space, "machine": machine, "boot": boot}


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _owner(path: Path) -> dict[str, Any]:
    try:
        return parse_owner(path.read_bytes())
    except OSError:
        return {}


def _beat(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def is_dead(owner: dict[str, Any], silent_seconds: float, limit: float) -> bool:
    """Whether an owner's process is gone from this machine, or is on another one and has been silent over the limit."""
    here = _here()
    differing = {key for key, value in here.items() if owner.get(key) != value}
    if not differing and isinstance(owner.get("pid"), int):
        return _started(owner["pid"]) != owner.get("started")
    if differing == {"boot"} and here["machine"] and here["boot"] and owner.get("boot"):
        # This machine was started anew since.
        return True
    return silent_seconds > limit


def _take_over(path: Path, owner: dict[str, Any]) -> None:
    try:
        with _one_at_a_time(path.parent):
            # Somebody else may have taken it over in between.
            if _owner(path).get("token") != owner.get("token"):
                return
            path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise storage_error(error, path) from error
    log.warning("took over the lock %s of dead process %s on %s", path, owner.get("pid"), owner.get("host"))


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let the processes of this machine look and take over one after another; ends with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems cannot do this; what is left there is a race of microseconds.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _started(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot, None where there is no such living process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self").exists():
            return None
        return _alive_without_proc(pid)
    return None if fields[0] in ("Z", "X") else fields[19]


def _alive_without_proc(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"


def _heartbeat(path: Path, token: str, stop: threading.Event) -> None:
    while not stop.wait(BEAT_SECONDS):
        if _owner(path).get("token") != token:
            log.error("lost the lock %s", path)
            return
        try:
            os.utime(path)
        except OSError as error:
            log.warning("cannot renew the lock %s: %s", path, error)
