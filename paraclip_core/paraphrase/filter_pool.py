"""Filtering in several processes, which does not change a byte of the filter results."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cached_property, lru_cache
from pathlib import Path

import pyarrow as pa

from paraclip_core.errors import CrashedError, StageError
from paraclip_core.lifetime import die_with
from paraclip_core.paraphrase.filtering import AnswerFilter, Candidate, FilterSpec, Further, requests_of
from paraclip_core.paraphrase.filters import filters_of, preset_named
from paraclip_core.paraphrase.synonyms import Fetch, Words
from paraclip_core.tables import text_hash

BLOCK_ROWS = 512
IN_PROCESS_BLOCKS = 4
"""Starting processes, which load the sentence encoder, takes as long as filtering this many answers."""
KILLED = (
    "a process that filters answers was killed; the machine may be out of memory (lower run.threads to start fewer). "
    "Filter results so far are kept; run again to go on from there"
)
CHANGED = "the code that filters answers changed since this run began; run again to go on with it"

Filtered = tuple[pa.RecordBatch, pa.RecordBatch]
"""A block and its filter results, row by row."""


class FilterPool:
    """Processes that filter answers, started when there is enough work for them; close it at the end."""

    def __init__(self, spec: FilterSpec, processes: int = 0, scratch: Path | None = None) -> None:
        """Use `processes` processes, 0: one per core; `scratch` is a folder for tables of synonyms."""
        self._spec, self._scratch = spec, scratch
        self._processes = processes or os.cpu_count() or 1
        # One pool per process: if one of several dies while another is being started, CPython 3.11 waits for the
        # other one forever.
        self._pools: deque[ProcessPoolExecutor] = deque()
        self._synonyms = ""  # file with the table
        self._waiting: deque[tuple[pa.RecordBatch, Future[pa.RecordBatch]]] = deque()

    @property
    def words(self) -> Words | None:
        """How answers with swapped words are made; None if none are tried."""
        return preset_named(self._spec.filters.preset).words if self._spec.words else None

    def find_synonyms(self, fetch: Fetch, blocks: Iterable[pa.RecordBatch]) -> None:
        """From now on, also try answers with swapped words: synonyms that `fetch` finds for the words of the blocks."""
        answer_filter, words, step = self._here, self.words, self._spec.step
        assert self._scratch is not None and answer_filter.encoder is not None and words is not None
        texts = (
            text
            for block in blocks
            for asked in requests_of(block)
            for text in words.bases(asked.source, asked.caption, asked.answers, step)
        )
        table = json.dumps(words.find(texts, fetch, answer_filter.encoder.encode, answer_filter.pieces), sort_keys=True)
        path = self._scratch / f"synonyms-{text_hash(table).hex()}.json"
        path.write_text(table)
        self._synonyms = str(path)

    def filter(self, blocks: Iterable[pa.RecordBatch], rows: int) -> Iterator[Filtered]:
        """Blocks (`tables.ANSWERS`) with their filter results, in order; `rows` is their total number of rows."""
        if not self._pools and (self._processes == 1 or rows <= IN_PROCESS_BLOCKS * BLOCK_ROWS):
            further = _further(self._spec, self._synonyms)
            yield from ((block, self._here.filter_block(block, further)) for block in blocks)
            return
        for block in blocks:
            self._submit(block)
            if len(self._waiting) > 2 * self._processes:
                yield self._next()
        yield from self.offered(wait=True)

    def explain(self, block: pa.RecordBatch) -> list[list[Candidate]]:
        """Every candidate of each request of a block, with the result of every filter."""
        return self._here.explain(requests_of(block), _further(self._spec, self._synonyms))

    def offer(self, block: pa.RecordBatch) -> bool:
        """Let a process filter a block while the caller does something else, if one is free."""
        if self._processes == 1 or len(self._waiting) > 2 * self._processes:
            return False
        self._submit(block)
        return True

    def offered(self, wait: bool = False) -> Iterator[Filtered]:
        """Offered blocks that are filtered by now, with their filter results; `wait`: wait for all of them."""
        while self._waiting and (wait or self._waiting[0][1].done()):
            yield self._next()

    def close(self) -> None:
        """End the processes; work in progress is dropped."""
        while self._pools:
            self._pools.pop().shutdown(cancel_futures=True)

    @cached_property
    def _here(self) -> AnswerFilter:
        return AnswerFilter.with_models(self._spec)

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
            future = self._pools[0].submit(_filter_block, self._spec, self._digest, block, self._synonyms)
        except BrokenProcessPool as error:
            raise CrashedError(KILLED) from error
        self._waiting.append((block, future))
        self._pools.rotate(-1)

    def _next(self) -> Filtered:
        block, future = self._waiting.popleft()
        try:
            return block, future.result()
        except BrokenProcessPool as error:
            raise CrashedError(KILLED) from error


def _start_worker(parent: int, one_thread: bool) -> None:
    """Prepare a filtering process: it ends with its parent and leaves the other cores to its siblings."""
    die_with(parent)
    if one_thread:
        import torch

        torch.set_num_threads(1)


def _filter_block(spec: FilterSpec, digest: bytes, block: pa.RecordBatch, synonyms: str) -> pa.RecordBatch:
    """Filter results of a block in a filtering process, with the table of synonyms in the file `synonyms`, if there is
    one."""
    return _worker_filter(spec, digest).filter_block(block, _further(spec, synonyms))


@lru_cache(maxsize=1)
def _worker_filter(spec: FilterSpec, digest: bytes) -> AnswerFilter:
    """A filtering process's only `AnswerFilter`."""
    if spec.digest != digest:
        # This process loaded newer code, and its filter results would not be those that the parent expects.
        raise StageError(CHANGED)
    return AnswerFilter.with_models(spec)


@lru_cache(maxsize=1)
def _further(spec: FilterSpec, synonyms: str) -> Further | None:
    """Makes answers with swapped words from the table in the file `synonyms`; None without a file."""
    words = preset_named(spec.filters.preset).words
    if not synonyms or words is None:
        return None
    table = {word: tuple(others) for word, others in json.loads(Path(synonyms).read_text()).items()}
    variants = words.variants
    return lambda source, caption, answers, step: variants(source, caption, answers, step, table)
