"""What a process that was started for some work leaves for the one that waits for it: progress, and why it failed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from pathlib import Path

import paraclip_core.errors
from paraclip_core.errors import ParaclipError, with_notes
from paraclip_core.progress import Progress

__all__ = ["looking", "read_failure", "relay_from", "report_to", "write_failure"]


def report_to(path: Path, seconds: float = 0.2) -> Progress:
    """A progress that leaves its latest state in `path`, once in so many seconds at most, and when all is done."""
    last = 0.0

    def progress(done: int, total: int | None, **facts: float | int | str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < seconds and done != total:
            return
        last = now
        draft = path.with_suffix(".new")
        # A full temporary folder is no reason to give up the work itself.
        with suppress(OSError):
            draft.write_text(json.dumps({"done": int(done), "total": total, "facts": facts}, default=float))
            draft.replace(path)

    return progress


def relay_from(path: Path, progress: Progress) -> Callable[[], None]:
    """Passes on what :func:`report_to` left in `path`, each time it is called and something new is there."""
    seen = 0

    def look() -> None:
        nonlocal seen
        with suppress(FileNotFoundError):
            stamp = path.stat().st_mtime_ns
            if stamp != seen:
                seen = stamp
                told = json.loads(path.read_text())
                progress(told["done"], told["total"], **told["facts"])

    return look


@contextmanager
def looking(look: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call `look` every so many seconds in a thread while the block lasts, and once more at its end."""
    over = threading.Event()

    def watch() -> None:
        last = False
        while not last:
            last = over.wait(seconds)
            look()

    # Whoever shows the progress may want to know in which run.
    thread = threading.Thread(target=copy_context().run, args=(watch,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def write_failure(path: Path, error: ParaclipError) -> None:
    """Leave an error and its notes in `path`; nothing where there is no room, so that the log has the last word."""
    draft = path.with_suffix(".new")
    with suppress(OSError):
        draft.write_text(json.dumps({"class": type(error).__name__, "text": with_notes(error)}))
        draft.replace(path)


def read_failure(path: Path, otherwise: type[ParaclipError]) -> ParaclipError:
    """The error that :func:`write_failure` left, of the same class; of class `otherwise` where that is unknown."""
    told = json.loads(path.read_text())
    return getattr(paraclip_core.errors, told["class"], otherwise)(told["text"])
