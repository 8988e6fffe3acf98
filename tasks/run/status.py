"""Progress and failure of a stage, from the working process to the waiting one, and on to people.

A process writes both to one JSON file, its status, which is replaced atomically: the latest progress (`done`, `total`,
`facts`), and its `failure` if it ends with one. The waiting process reads the file now and then, and shows the progress
on a terminal and in the UI.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import paraclip_core.errors
from paraclip_core.errors import ParaclipError, with_notes
from paraclip_core.progress import Fact, Progress

log = logging.getLogger(__name__)

LOG_SECONDS = 30.0


class StatusFile:
    """The status that a working process writes to `path`. If the disk is full, the work continues without it."""

    def __init__(self, path: Path, seconds: float = 0.2) -> None:
        """Write progress at most once per `seconds`, and when everything is done."""
        self._path, self._seconds, self._last = path, seconds, 0.0
        self._status: dict[str, Any] = {}

    def progress(self, done: int, total: int | None, **facts: Fact) -> None:
        """A `Progress`."""
        now = time.monotonic()
        if now - self._last >= self._seconds or done == total:
            self._last = now
            self._write(done=int(done), total=total, facts=facts)

    def fail(self, error: ParaclipError) -> None:
        """Write why the work ended."""
        self._write(failure={"class": type(error).__name__, "text": with_notes(error)})

    def _write(self, **status: Any) -> None:
        self._status |= status
        draft = self._path.with_suffix(".new")
        with suppress(OSError):
            draft.write_text(json.dumps(self._status, default=float))
            draft.replace(self._path)


def relay_from(path: Path, progress: Progress) -> Callable[[], None]:
    """Return a function that passes on the progress in a status file if it is new."""
    seen = 0

    def look() -> None:
        nonlocal seen
        with suppress(FileNotFoundError):
            stamp = path.stat().st_mtime_ns
            if stamp != seen:
                seen = stamp
                status = json.loads(path.read_text())
                if "done" in status:
                    progress(status["done"], status["total"], **status["facts"])

    return look


def read_failure(path: Path, otherwise: type[ParaclipError]) -> ParaclipError | None:
    """The error in a status file, of the same class, or `otherwise` if that is unknown; None without an error."""
    failure = json.loads(path.read_text()).get("failure") if path.exists() else None
    if failure is None:
        return None
    return getattr(paraclip_core.errors, failure["class"], otherwise)(failure["text"])


def together(*progresses: Progress) -> Progress:
    """A progress that reports to several others."""

    def report(done: int, total: int | None, **facts: Fact) -> None:
        for progress in progresses:
            progress(done, total, **facts)

    return report


@contextmanager
def shown_progress(stage: str, write: Callable[[str], None] | None = None) -> Iterator[Progress]:
    """A progress for the duration of a stage: a bar on a terminal, an occasional line elsewhere.

    `write` takes the lines; the log by default.
    """
    if sys.stderr.isatty() and log.manager.disable < logging.INFO:
        with _bar(stage) as progress:
            yield progress
    else:
        yield _lines(stage, write or partial(log.info, "%s"))


_LOCK, _DISPLAYS = threading.Lock(), list[Any]()
"""The shared display of all concurrent stages, while there are any."""


@contextmanager
def _bar(stage: str) -> Iterator[Progress]:
    with _LOCK:
        if not _DISPLAYS:
            _DISPLAYS.append(_new_bars())
            _DISPLAYS[0].start()
        bars = _DISPLAYS[0]
        task = bars.add_task(stage, total=None, facts="")

    def progress(done: int, total: int | None, **facts: Fact) -> None:
        bars.update(task, completed=done, total=total, facts=shown_facts(facts))

    try:
        yield progress
    finally:
        with _LOCK:
            if bars.task_ids == [task]:
                _DISPLAYS.pop().stop()
            else:
                bars.remove_task(task)


def _new_bars() -> Any:
    # Imported here because only a terminal needs it.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    # Facts may hold user-chosen names, whose brackets are not markup. They take the width that the other columns leave.
    facts = TextColumn("{task.fields[facts]}", style="dim", markup=False, table_column=Column(ratio=1, no_wrap=True))
    counts = MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    columns = "{task.description:<12}", BarColumn(bar_width=10), *counts, facts
    return Progress(*columns, console=Console(stderr=True), transient=True, expand=True)


def _lines(stage: str, write: Callable[[str], None]) -> Progress:
    last = time.monotonic()

    def progress(done: int, total: int | None, **facts: Fact) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LOG_SECONDS:
            return
        last = now
        write(f"{stage}: {done} of {'?' if total is None else total}, {shown_facts(facts)}".rstrip(", "))

    return progress


def shown_facts(facts: Mapping[str, Fact]) -> str:
    """Facts of a progress in one line; money first, because a narrow terminal cuts off the end."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in sorted(facts.items(), key=lambda fact: fact[0] != "spend")
    )
