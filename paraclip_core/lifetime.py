"""Child processes, threads and temporary folders that do not outlive the process that made them, however it ends.

The owner of a temporary folder holds a lock on a file in it, which the kernel releases however the owner ends. Making
a folder deletes those whose lock is free.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")

PR_SET_PDEATHSIG = 1
PREFIX = "paraclip-"
OWNER = ".owner"
SETTLED_SECONDS = 60.0
"""Age from which a folder without an owner counts as abandoned; a younger one may still be being created."""


def die_with(parent: int) -> None:
    """End this process when the process `parent`, or its thread that started this one, ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_poll_parent, args=(parent,), daemon=True).start()
    # It may have ended before the line above.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _poll_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


class TempDir:
    """A temporary folder that lasts as long as this process or, as a context manager, as long as the block."""

    def __init__(self, kind: str = "") -> None:
        """Delete abandoned folders, then make this one, named after `kind`."""
        sweep()
        self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}"))
        self._owner = os.open(self.path / OWNER, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._owner, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Delete the folder, release the lock, and sweep: a killed process's folder may have been too young before."""
        _delete(self.path)
        os.close(self._owner)
        sweep()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *error: object) -> None:
        self.remove()


def sweep() -> list[Path]:
    """Delete this user's folders whose owners are dead, and return their paths."""
    abandoned = [path for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*") if _abandoned(path)]
    for path in abandoned:
        log.info("%s was left by a killed process and has been deleted", path)
        _delete(path)
    return abandoned


def _delete(path: Path) -> None:
    """Delete a folder, its lock file last, so that what a kill leaves behind can still be swept."""
    with suppress(OSError):
        for entry in path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != OWNER:
                entry.unlink(missing_ok=True)
        (path / OWNER).unlink(missing_ok=True)
        path.rmdir()


def _abandoned(path: Path) -> bool:
    with suppress(OSError):
        stat = path.lstat()
        # Any user may put a link or a folder with such a name there.
        if path.is_symlink() or not path.is_dir() or stat.st_uid != os.getuid():
            return False
        if not (path / OWNER).exists():
            # Its process was killed before it made the file: such a folder is empty, or not ours.
            return time.time() - stat.st_mtime > SETTLED_SECONDS and not any(path.iterdir())
        if time.time() - (path / OWNER).lstat().st_mtime < SETTLED_SECONDS:
            return False
        owner = os.open(path / OWNER, os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(owner)
        return True
    return False


class LoopThread:
    """An event loop in its own thread, for callers inside and outside other loops."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="event loop", daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self) -> None:
        """Cancel what is still running, and end the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        # The runner cancels what is left when the loop is stopped.
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.get_loop().run_forever()
