"""How a long computation reports its progress, without knowing its listener."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TypeAlias

REPORT_SECONDS = 1.0
Fact: TypeAlias = float | int | str
"""A short figure worth showing."""


class Progress(Protocol):
    """Called now and then by a long computation."""

    def __call__(self, done: int, total: int | None, **facts: Fact) -> None:
        """`done` of `total` units are finished (None: unknown); `facts` are short figures worth showing."""
        ...


def silent(done: int, total: int | None, **facts: Fact) -> None:
    """A progress callback that reports nothing."""


class Throughput:
    """Reports rates since the last report to a progress callback, once a second."""

    def __init__(self, progress: Progress, steps: int, start: int, batch_size: int) -> None:
        """`steps` is the number of steps of the whole run, `start` the number already done."""
        self._progress, self._steps, self._batch_size = progress, steps, batch_size
        self._done, self._reported, self._waited = start, time.monotonic(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count time in this block as waiting for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def report(self, done: int, **facts: float) -> None:
        """Report `done` steps, at most once a second; the last step is always reported."""
        now = time.monotonic()
        if now - self._reported < REPORT_SECONDS and done != self._steps:
            return
        seconds = max(now - self._reported, 1e-9)
        rate = (done - self._done) * self._batch_size / seconds
        share = 100 * self._waited / seconds
        left = (self._steps - done) * self._batch_size / rate if rate else 0.0
        rates = {"samples_per_second": round(rate, 1), "data_wait_percent": round(share, 1)}
        self._progress(done, self._steps, eta_seconds=round(left), **facts, **rates)
        self._done, self._reported, self._waited = done, now, 0.0
