"""One writer per fingerprint: a lock file with an owner and a heartbeat."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paraclip_core.errors import LockedError
from storage.atomic import storage_error

__all__ = ["lock"]

log = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
DEAD_SECONDS = 60.0


@contextmanager
def lock(path: Path, wait_seconds: float | None = None, poll: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file `path`; a dead owner's lock is taken over, a living owner's is waited for.

    An owner is dead when its process is gone from this machine, or when it runs on another one and its heartbeat is
    older than a minute.

    Args:
        path: the lock file.
        wait_seconds: give up after this long; None waits for ever.
        poll: called between two tries, for progress or for giving up by an exception of its own.

    Raises:
        LockedError: the owner lives and the time is over; the text names the owner.
        ArtifactError: the folder cannot be written.
    """
    token = uuid.uuid4().hex
    _acquire(path, token, wait_seconds, poll)
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(path, token, stop), name=f"lock-{path.name}", daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        if _owner(path).get("token") == token:
            path.unlink(missing_ok=True)


def _acquire(path: Path, token: str, wait_seconds: float | None, poll: Callable[[], None] | None) -> None:
    started, told = time.monotonic(), False
    while not _create(path, token):
        owner = _owner(path)
        if _dead(owner, path):
            _take_over(path, owner)
            continue
        if wait_seconds is not None and time.monotonic() - started >= wait_seconds:
            raise LockedError(
                f"{path} is held by process {owner.get('pid')} on {owner.get('host')}; wait for it to end"
            )
        if not told:
            log.info("waiting for process %s on %s, which makes the same artifact", owner.get("pid"), owner.get("host"))
            told = True
        if poll is not None:
            poll()
        time.sleep(0.2)


def _create(path: Path, token: str) -> bool:
    owner = {"token": token, "host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The content is written first and linked second, so no other process sees a lock without an owner.
        draft = path.with_name(f"{path.name}.{token}")
        draft.write_text(json.dumps(owner))
        try:
            os.link(draft, path)
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error
    return True


def _owner(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _dead(owner: dict[str, Any], path: Path) -> bool:
    if owner.get("host") == socket.gethostname():
        return _started(int(owner["pid"])) != owner.get("started")
    try:
        return time.time() - path.stat().st_mtime > DEAD_SECONDS
    except OSError:
        return False


def _take_over(path: Path, owner: dict[str, Any]) -> None:
    # Only one of several waiting processes succeeds in renaming the file away.
    grave = path.with_name(f"{path.name}.dead-{uuid.uuid4().hex}")
    try:
        path.rename(grave)
    except FileNotFoundError:
        return
    if _owner(grave).get("token") != owner.get("token"):
        # Somebody took it over in between; give it back.
        os.link(grave, path)
    else:
        log.warning("took over the lock of dead process %s on %s", owner.get("pid"), owner.get("host"))
    grave.unlink(missing_ok=True)


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
