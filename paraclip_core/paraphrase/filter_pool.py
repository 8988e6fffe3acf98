"""Filtering in several processes, which does not change a byte of the filter results."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cached_property, lru_cache

import pyarrow as pa

from paraclip_core.errors import CrashedError, StageError
from paraclip_core.lifetime import die_with
from paraclip_core.paraphrase.filtering import AnswerFilter, FilterSpec
from paraclip_core.paraphrase.filters import filters_of

BLOCK_ROWS = 512
IN_PROCESS_BLOCKS = 4
"""Starting processes, which load the sentence encoder, takes as long as filtering this many answers."""
KILLED = (
    "a process that filters answers was killed; the machine may be out of memory (lower run.threads to start fewer). "
    "Filter results so far are kept; run again to go on from there"
)
CHANGED = "the code that filters answers changed since this run began; run again to go on with it"


class FilterPool:
    """Processes that filter answers, started when there is enough work for them; close it at the end."""

    def __init__(self, spec: FilterSpec, processes: int = 0) -> None:
        """Use `processes` processes, 0: one per core."""
        self._spec = spec
        self._processes = processes or os.cpu_count() or 1
        # One pool per process: if one of several dies while another is being started, CPython 3.11 waits for the
        # other one forever.
        self._pools: deque[ProcessPoolExecutor] = deque()
        self._waiting: deque[Future[pa.RecordBatch]] = deque()

    def filter(self, blocks: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
        """Filter results (`tables.FILTER_RESULTS`) of blocks (`tables.ANSWERS`), in order; `rows` is the number of
        all rows."""
        if not self._pools and (self._processes == 1 or rows <= IN_PROCESS_BLOCKS * BLOCK_ROWS):
            yield from map(self._answer_filter.filter_block, blocks)
            return
        for block in blocks:
            self._submit(block)
            if len(self._waiting) > 2 * self._processes:
                yield self._next()
        yield from self.offered(wait=True)

    def offer(self, block: pa.RecordBatch) -> bool:
        """Let a process filter a block while the caller does something else, if one is free."""
        if self._processes == 1 or len(self._waiting) > 2 * self._processes:
            return False
        self._submit(block)
        return True

    def offered(self, wait: bool = False) -> Iterator[pa.RecordBatch]:
        """Filter results of offered blocks, in order, of those filtered by now; `wait`: wait for all of them."""
        while self._waiting and (wait or self._waiting[0].done()):
            yield self._next()

    def close(self) -> None:
        """End the processes; work in progress is dropped."""
        while self._pools:
            self._pools.pop().shutdown(cancel_futures=True)

    @cached_property
    def _answer_filter(self) -> AnswerFilter:
        return AnswerFilter(self._spec)

    @cached_property
    def _digest(self) -> bytes:
        return self._spec.digest

    def _submit(self, block: pa.RecordBatch) -> None:
        if not self._pools:
            # Not forked: threads of torch and Arrow do not survive that.
            context = multiprocessing.get_context("spawn")
            one_thread = bool(filters_of(self._spec.filters).meaning)
            initargs = os.getpid(), one_thread
            self._pools.extend(ProcessPoolExecutor(1, context, _start_worker, initargs) for _ in range(self._processes))
        try:
            future = self._pools[0].submit(_filter_block, self._spec, self._digest, block)
        except BrokenProcessPool as error:
            raise CrashedError(KILLED) from error
        self._waiting.append(future)
        self._pools.rotate(-1)

    def _next(self) -> pa.RecordBatch:
        try:
            return self._waiting.popleft().result()
        except BrokenProcessPool as error:
            raise CrashedError(KILLED) from error


def _start_worker(parent: int, one_thread: bool) -> None:
    """Prepare a filtering process: it ends with its parent and leaves the other cores to its siblings."""
    die_with(parent)
    if one_thread:
        import torch

        torch.set_num_threads(1)


def _filter_block(spec: FilterSpec, digest: bytes, block: pa.RecordBatch) -> pa.RecordBatch:
    """Filter results of a block in a filtering process."""
    return _worker_filter(spec, digest).filter_block(block)


@lru_cache(maxsize=1)
def _worker_filter(spec: FilterSpec, digest: bytes) -> AnswerFilter:
    """A filtering process's only `AnswerFilter`."""
    if spec.digest != digest:
        # This process loaded newer code, and its filter results would not be those that the parent expects.
        raise StageError(CHANGED)
    return AnswerFilter(spec)
