"""How far a stage is, and how it ended: from the process that works to the one that waits, and on to people.

A process leaves all of it in one JSON file, its status, which is replaced as a whole: the latest progress (`done`,
`total`, `facts`), and at its end its `answer` or its `failure`. The process that waits for it reads the file now and
then, shows the progress on a terminal and in the UI, and appends it to the stage's event log.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import paraclip_core.errors
from paraclip.storage.artifacts import ArtifactStore
from paraclip_core.errors import ParaclipError, with_notes
from paraclip_core.progress import Fact, Progress

log = logging.getLogger(__name__)

LOG_SECONDS = 30.0
EVENT_SECONDS = 5.0
MOST_BYTES = 4 << 20
"""Size from which an event log is moved aside; the one that was moved aside before is deleted."""
LONGEST = 2000
"""Characters of an error's text in an event log."""


class StatusFile:
    """What a working process leaves in `path`; where there is no room for it, the work goes on without."""

    def __init__(self, path: Path, seconds: float = 0.2) -> None:
        """Progress is written once in so many seconds at most, and when all is done."""
        self._path, self._seconds, self._last = path, seconds, 0.0
        self._status: dict[str, Any] = {}

    def progress(self, done: int, total: int | None, **facts: Fact) -> None:
        """A `Progress`."""
        now = time.monotonic()
        if now - self._last >= self._seconds or done == total:
            self._last = now
            self._write(done=int(done), total=total, facts=facts)

    def answer(self, value: Any) -> None:
        """The result of the work, JSON-ready."""
        self._write(answer=value)

    def fail(self, error: ParaclipError) -> None:
        """Why the work ended."""
        self._write(failure={"class": type(error).__name__, "text": with_notes(error)})

    def _write(self, **status: Any) -> None:
        self._status |= status
        draft = self._path.with_suffix(".new")
        with suppress(OSError):
            draft.write_text(json.dumps(self._status, default=float))
            draft.replace(self._path)


def relay_from(path: Path, progress: Progress) -> Callable[[], None]:
    """Passes on the progress in a status file, each time it is called and something new is there."""
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


def read_answer(path: Path) -> Any:
    """The answer in a status file; None where there is none."""
    return json.loads(path.read_text()).get("answer") if path.exists() else None


def read_failure(path: Path, otherwise: type[ParaclipError]) -> ParaclipError | None:
    """The error in a status file, of the same class, or of class `otherwise` where that is unknown; None without."""
    failure = json.loads(path.read_text()).get("failure") if path.exists() else None
    if failure is None:
        return None
    return getattr(paraclip_core.errors, failure["class"], otherwise)(failure["text"])


@contextmanager
def polling(look: Callable[[], object], seconds: float) -> Iterator[None]:
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


def with_samples(progress: Progress, rows: Callable[[], Sequence[Mapping[str, str]]]) -> Progress:
    """A progress that carries the latest samples as the fact `samples`."""

    def report(done: int, total: int | None, **facts: Fact) -> None:
        progress(done, total, **facts, samples=rows())

    return report


def both(first: Progress, second: Progress) -> Progress:
    """A progress that tells two."""

    def report(done: int, total: int | None, **facts: Fact) -> None:
        first(done, total, **facts)
        second(done, total, **facts)

    return report


@contextmanager
def shown_progress(stage: str, write: Callable[[str], None] | None = None) -> Iterator[Progress]:
    """A progress for as long as a stage runs: a bar on a terminal, elsewhere now and then a line.

    `write` takes the lines; the log by default.
    """
    if sys.stderr.isatty() and log.manager.disable < logging.INFO:
        with _DISPLAY.bar(stage) as progress:
            yield progress
    else:
        yield _lines(stage, write or partial(log.info, "%s"))


class _Display:
    """The bars of all stages that run at the same time, one below the other."""

    def __init__(self) -> None:
        self._lock, self._shown = threading.Lock(), 0
        self._bars: Any = None

    @contextmanager
    def bar(self, stage: str) -> Iterator[Progress]:
        """A bar, as long as a stage runs."""
        with self._lock:
            self._bars, self._shown = self._bars or _new_bars(), self._shown + 1
            bars = self._bars
            bars.start()
        task = bars.add_task(stage, total=None, facts="")

        def progress(done: int, total: int | None, **facts: Fact) -> None:
            bars.update(task, completed=done, total=total, facts=shown_facts(facts))

        try:
            yield progress
        finally:
            with self._lock:
                self._shown -= 1
                if self._shown:
                    bars.remove_task(task)
                else:
                    bars.stop()
                    self._bars = None


_DISPLAY = _Display()


def _new_bars() -> Any:
    # Imported here because only a terminal needs it.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        # Facts hold names that a user chose, and brackets in them are no markup. They take what the others leave.
        TextColumn("{task.fields[facts]}", style="dim", markup=False, table_column=Column(ratio=1, no_wrap=True)),
    )
    return Bars(*columns, console=Console(stderr=True), transient=True, expand=True)


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
    """Facts of a progress in one line, samples aside; money first, for a narrow terminal cuts off the end."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in sorted(facts.items(), key=lambda fact: fact[0] != "spend")
        if name != "samples"
    )


def events_path(store: ArtifactStore, stage: str, fingerprint: str) -> Path:
    """The event log of a stage."""
    return store.root / "logs" / f"{stage}-{fingerprint}.events.jsonl"


class EventLog:
    """Appends what happens to a stage to a file of JSON lines, for machines that watch runs.

    A line has `time` (UTC), `event` (`started`, `progress`, `finished`, `failed`), `stage`, `fingerprint` and `part`
    (`stage`, or `shards`); a progress has `done`, `total` and its facts, an end `seconds` and its counts or its error.
    A log that cannot be written is no reason to stop: what cannot be written is left out.
    """

    def __init__(self, path: Path, stage: str, fingerprint: str, part: str = "stage") -> None:
        """`path` is appended to; its folder is made."""
        self.path = path
        self._about = {"stage": stage, "fingerprint": fingerprint, "part": part}
        self._counts: Mapping[str, Any] = {}
        self._began = self._last = time.monotonic()

    def __enter__(self) -> EventLog:
        """Say that it started."""
        self._write("started")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Say how it ended."""
        seconds = round(time.monotonic() - self._began, 3)
        if error is None:
            self._write("finished", seconds=seconds, counts=self._counts)
        else:
            self._write("failed", seconds=seconds, error=type(error).__name__, text=with_notes(error)[:LONGEST])

    def progress(self, done: int, total: int | None, **facts: Fact) -> None:
        """Write how far it is, every few seconds."""
        now = time.monotonic()
        if now - self._last < EVENT_SECONDS:
            return
        self._last = now
        figures = {name: value for name, value in facts.items() if name != "samples"}
        self._write("progress", done=int(done), total=total, facts=figures)

    def counted(self, counts: Mapping[str, Any]) -> None:
        """What the line `finished` will tell; texts and figures of it, and figures by name."""
        self._counts = {
            name: value for name, value in counts.items() if isinstance(value, int | float | str) or name == "rejected"
        }

    def _write(self, event: str, **more: Any) -> None:
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **self._about, **more}
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and self.path.stat().st_size > MOST_BYTES:
                self.path.replace(self.path.with_name(f"{self.path.stem}.old.jsonl"))
            with self.path.open("a", encoding="ascii") as file:
                # In ASCII, so that no control or direction character reaches a terminal.
                file.write(json.dumps(line, ensure_ascii=True, default=str) + "\n")
