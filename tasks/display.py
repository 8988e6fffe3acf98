"""What a person sees of a stage's progress: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from paraclip_core.progress import Progress

__all__ = ["both", "shown_facts", "shown_progress"]

log = logging.getLogger(__name__)

LOG_SECONDS = 30.0


@contextmanager
def shown_progress(stage: str) -> Iterator[Progress]:
    """A progress for as long as a stage runs, on standard error."""
    if sys.stderr.isatty():
        with _bar(stage) as progress:
            yield progress
    else:
        yield _lines(stage)


def both(first: Progress, second: Progress) -> Progress:
    """A progress that tells two."""

    def progress(done: int, total: int | None, **facts: float | int | str) -> None:
        first(done, total, **facts)
        second(done, total, **facts)

    return progress


@contextmanager
def _bar(stage: str) -> Iterator[Progress]:
    # Imported here because only a terminal needs it.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        # Facts hold names that a user chose, and brackets in them are no markup.
        TextColumn("{task.fields[facts]}", style="dim", markup=False),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(stage, total=None, facts="")

        def progress(done: int, total: int | None, **facts: float | int | str) -> None:
            bars.update(task, completed=done, total=total, facts=shown_facts(facts))

        yield progress


def _lines(stage: str) -> Progress:
    last = time.monotonic()

    def progress(done: int, total: int | None, **facts: float | int | str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LOG_SECONDS:
            return
        last = now
        log.info("%s: %d of %s %s", stage, done, "?" if total is None else total, shown_facts(facts))

    return progress


def shown_facts(facts: Mapping[str, float | int | str]) -> str:
    """Facts of a progress in one line."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in facts.items()
    )
