"""How fast a run goes, for the line that a person sees."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from paraclip_core.progress import Progress

__all__ = ["Pace"]

SECONDS = 1.0


class Pace:
    """Tells a progress, once a second, what was done since the last time."""

    def __init__(self, progress: Progress, steps: int, start: int, batch_size: int, matmul_rate: float = 0.0) -> None:
        """`steps` is the number of steps of the whole run, `start` the number that were taken before.

        `matmul_rate` is what the machine could do, in floating-point operations a second; 0 if nobody knows.
        """
        self._matmul_rate, self._computed = matmul_rate, 0.0
        self._progress, self._steps, self._done, self._batch_size = progress, steps, start, batch_size
        self._told, self._waited = time.monotonic(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in this block is waiting for data."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    def compute(self, operations: float) -> None:
        """Note floating-point operations that were done."""
        self._computed += operations

    def tell(self, done: int, **facts: float) -> None:
        """Say that `done` steps are taken; the rate and the shares are those of the last second or more."""
        now = time.monotonic()
        if now - self._told < SECONDS and done != self._steps:
            return
        seconds = max(now - self._told, 1e-9)
        rate = (done - self._done) * self._batch_size / seconds
        share = 100 * self._waited / seconds
        if self._matmul_rate and self._computed:
            facts["matmul_percent"] = round(100 * self._computed / seconds / self._matmul_rate, 1)
        self._progress(done, self._steps, **facts, samples_per_second=round(rate, 1), data_wait_percent=round(share, 1))
        self._told, self._waited, self._done, self._computed = now, 0.0, done, 0.0
