"""Child processes, threads and temporary folders that do not outlive the process that made them."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from paraclip_core.errors import FULL, FullDiskError, StageError

T = TypeVar("T")

PR_SET_PDEATHSIG = 1
PREFIX = "paraclip-"


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
    """A temporary folder for the life of this process; as a context, until its end."""

    def __init__(self, kind: str = "") -> None:
        """Make the folder, named after `kind`."""
        try:
            self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}"))
        except OSError as error:
            raise (FullDiskError if error.errno in FULL else StageError)(
                f"cannot make a temporary folder: {error}; free some space there, or choose another place with TMPDIR"
            ) from error

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class LoopThread:
    """An event loop in a thread of its own, for callers inside and outside of other loops."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="event loop", daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine there."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self) -> None:
        """Cancel what still runs, and end the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        # The runner cancels what is left when the loop is stopped.
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.get_loop().run_forever()
