"""Groups of texts that are computed side by side, each on its own share of a CPU's cores.

A step is some ten thousand short operations. Where all cores share each of them, they wait for one another ten thousand
times, and what one core does alone (turning a matrix round, calling the next operation) leaves the others idle.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

import torch

__all__ = ["STREAMS", "in_turn", "side_by_side"]

T = TypeVar("T")

STREAMS = 2
"""How many are computed at once. Each takes its own memory, and texts of different groups share no beginning."""


def in_turn(work: Callable[[int], T], count: int) -> Iterator[T]:
    """What `work` gives for 0 to `count` - 1, one after the other."""
    return map(work, range(count))


def side_by_side(work: Callable[[int], T], count: int) -> Iterator[T]:
    """The same, in the same order; with two cores or more `STREAMS` at once, in threads.

    Gradient mode and autocast are each thread's own, so `work` has to set them. When one fails, the others that were
    begun end before the error is raised.
    """
    cores = torch.get_num_threads()
    if count < 2 or cores < STREAMS:
        yield from in_turn(work, count)
        return
    pool, begun = _pool(cores), deque[Future[T]]()
    try:
        for number in range(count):
            begun.append(pool.submit(work, number))
            if len(begun) == STREAMS:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        wait(begun)


@cache
def _pool(cores: int) -> ThreadPoolExecutor:
    met = threading.Barrier(STREAMS + 1)

    def start() -> None:
        # A thread takes on the process's number when it first asks for it, even if it has set its own before.
        torch.get_num_threads()
        torch.set_num_threads(cores // STREAMS)
        met.wait()

    pool = ThreadPoolExecutor(STREAMS, "streams", start)
    for _ in range(STREAMS):
        pool.submit(int)
    met.wait()
    # What a thread sets is also the number of those that have not asked yet.
    torch.set_num_threads(cores)
    return pool
