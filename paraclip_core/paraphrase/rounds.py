"""The rounds of one step: request what is missing, filter what is unfiltered, and repeat for what was rejected.

A round is two set-wise joins (`step_tables.py`) and the work that they leave. Whatever any run has answered or filtered
is never requested or filtered again, so a killed round resumes where it stopped. Without an engine, the rounds count
what they would request, which is all that `plan` and batch files need.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from paraclip_core.config import ParaphraseOptions
from paraclip_core.paraphrase.engines import Engine, PaidEngine
from paraclip_core.paraphrase.filter_pool import BLOCK_ROWS, FilterPool
from paraclip_core.paraphrase.keys import RequestKeys
from paraclip_core.paraphrase.selection import Selection, select
from paraclip_core.paraphrase.sending import Counts, Phase, RequestSender
from paraclip_core.paraphrase.step_tables import Batches, RowCursor, StepTables, answers_block
from paraclip_core.progress import Progress, silent

log = logging.getLogger(__name__)

SENT_ROWS = 16_384
"""Maximum requests with texts in memory."""
SENT_AHEAD = 2048
"""Number of requests worth filtering while others are in flight."""
KEPT_FILTER_RESULTS = 4096
"""Maximum filter results that a kill may cost; filtering them again is free."""
FIRST_ANSWERS = 64
FEWEST_ACCEPTED = 1 / 3
SHOWN_REJECTS, SHOWN_CHARS = 3, 300


@dataclass(eq=False)
class Rounds:
    """One step over its rows. Run it, then read its `selection`."""

    options: ParaphraseOptions
    """The options that the engine reads."""
    request: RequestKeys
    """The keys of the first attempt."""
    tables: StepTables
    sender: RequestSender | None = None
    """None: nothing is requested, and `missing` says what would be."""
    pool: FilterPool | None = None
    """None: nothing is filtered; a sender needs a pool."""
    progress: Progress = silent
    missing: list[tuple[RequestKeys, np.ndarray]] = field(default_factory=list, init=False)
    """Without a sender: each round's request, and the numbers of the rows that it would send."""
    _accepted: int = field(default=0, init=False)
    _warning: str = field(default="", init=False)
    _filter_results: list[pa.RecordBatch] = field(default_factory=list, init=False)

    @cached_property
    def counts(self) -> Counts:
        """What was done, for the manifest."""
        return Counts() if self.sender is None else self.sender.counts

    @property
    def engine(self) -> Engine:
        assert self.sender is not None
        return self.sender.engine

    def run(self) -> None:
        """Request and filter until every row has an accepted answer or no attempt is left."""
        rows: np.ndarray | None = None
        try:
            for attempt in range(self.options.attempts):
                if attempt:
                    # Whether a row needs another attempt is unknown while this one has no answer.
                    rows = self.tables.rejected(attempt - 1 if self.sender is None else None)
                    if not len(rows):
                        break
                request = replace(self.request, attempt=attempt)
                requested, missing = self.tables.add(request, rows), self.tables.missing(attempt)
                self.counts.requested += requested
                self.counts.cached += requested - len(missing)
                if self.sender is None:
                    self.missing.append((request, missing))
                else:
                    self._complete(request, missing)
                self._filter(attempt)
        finally:
            # Nothing filtered before a failure is filtered again.
            self._keep_filter_results()

    @cached_property
    def selection(self) -> Selection:
        """The step's rows and rejects, once it has run."""
        # Step 2 gives each of step 1's paraphrases one paraphrase.
        selection = select(self.tables, self.options.keep if self.tables.step == 1 else 1)
        counts = self.counts
        counts.captions, counts.accepted, counts.kept = self.tables.rows, selection.accepted, selection.kept
        counts.rejected = selection.reasons
        return selection

    def _complete(self, request: RequestKeys, missing: np.ndarray) -> None:
        """Get the missing answers; the first few are filtered before the others are paid for."""
        phase = self._phase("asking", len(missing))
        if request.attempt == 0 and len(missing) > FIRST_ANSWERS:
            first, missing = missing[:FIRST_ANSWERS], missing[FIRST_ANSWERS:]
            self._send(request, first, phase)
            self._filter(0, first)
            self._warn_of_few(first)
        self._send(request, missing, phase)
        if request.attempt + 1 == self.options.attempts:
            # Nothing more will be requested: others may use the GPU while answers are filtered.
            self.engine.close()

    def _send(self, request: RequestKeys, rows: np.ndarray, phase: Phase) -> None:
        """Send the requests of these rows, and filter meanwhile if filtering does not compete with the engine."""
        sender, pool = self.sender, self.pool
        assert sender is not None and pool is not None
        # Processes that filter take seconds to start.
        ahead = len(rows) > SENT_AHEAD and not self.engine.facts.shares_cores
        for requests in self.tables.with_texts(request, rows, SENT_ROWS):
            keys: list[bytes] = requests.column("generation").to_pylist()
            number = {key: n for n, key in enumerate(keys)}
            todo = list(zip(requests.column("source").to_pylist(), keys, strict=True))
            for part in sender.send(request, todo):
                if ahead:
                    block = requests.take([number[key] for _, key, _ in part])
                    pool.offer(answers_block(block, pa.array([completion.texts for _, _, completion in part])))
                    self._take(pool.offered())
                phase(len(part))
        self._take(pool.offered(wait=True))
        self._keep_filter_results()

    def _filter(self, attempt: int, rows: np.ndarray | None = None) -> None:
        """Filter the attempt's answers that have no filter result, for all rows or for these."""
        if self.pool is None:
            return
        count = self.tables.find_unfiltered(attempt, rows)
        if count:
            began = time.monotonic()
            self._take(self.pool.filter(self.tables.unfiltered(BLOCK_ROWS), count), self._phase("filtering", count))
            self._keep_filter_results()
            self.counts.filter_seconds += time.monotonic() - began

    def _take(self, blocks: Iterable[pa.RecordBatch], phase: Phase | None = None) -> None:
        """Collect blocks of filter results, and store them now and then."""
        for filter_results in blocks:
            self.counts.filtered += filter_results.num_rows
            self._accepted += filter_results.column("reason").null_count
            self._filter_results.append(filter_results)
            if sum(batch.num_rows for batch in self._filter_results) >= KEPT_FILTER_RESULTS:
                self._keep_filter_results()
            if phase is not None:
                phase(filter_results.num_rows)

    def _keep_filter_results(self) -> None:
        if self._filter_results:
            self.tables.cache.append_filter_results(pa.Table.from_batches(self._filter_results))
            self._filter_results.clear()

    def _warn_of_few(self, rows: np.ndarray) -> None:
        """Warn if few of the first answers are accepted, before the others are paid for."""
        tables = self.tables
        filter_results = tables.first_filter_results(rows)
        rejects = [result for result in filter_results if result["reason"] is not None]
        share = (len(filter_results) - len(rejects)) / len(rows)
        if share >= FEWEST_ACCEPTED:
            return
        counts = Counter(result["reason"] for result in rejects).most_common()
        listed = ", ".join(f"{reason} {count}" for reason, count in counts)
        shown, examples = rejects[:SHOWN_REJECTS], ""
        texts = RowCursor(tables.batches([tables.source])).take(np.array([result["row"] for result in shown]))
        for text, result in zip(texts.column(tables.source).to_pylist(), shown, strict=True):
            answer, detail = result["answer"] or "", result["detail"]
            outcome = f"{result['reason']}: {detail}" if detail else result["reason"]
            examples += f"\n  {text[:SHOWN_CHARS]!r} -> {answer[:SHOWN_CHARS]!r} ({outcome[:SHOWN_CHARS]})"
        self._warning = f"{share:.0%} of the first {len(rows)} answers accepted ({listed})"
        log.warning(
            f"{share:.0%} of the first {len(rows)} answers of {self.engine.model} at step {tables.step} are accepted "
            f"({listed}); `paraclip paraphrase` tries captions out, docs/filters.md has the filters:{examples}"
        )

    def _phase(self, name: str, total: int) -> Phase:
        """Return a callback that reports the progress of one phase of a round, with the time left."""
        done, began = 0, time.monotonic()

        def add(count: int) -> None:
            nonlocal done
            done += count
            left = round((time.monotonic() - began) * (total - done) / max(done, 1))
            self.progress(done, total, phase=name, eta_seconds=left, **self._facts())

        return add

    def _facts(self) -> dict[str, float | int | str]:
        counts = self.counts
        facts: dict[str, float | int | str] = {"generated": counts.generated, "cached": counts.cached}
        if counts.engine_seconds and counts.generated:
            facts["requests_per_second"] = round(counts.generated / counts.engine_seconds, 1)
            facts["tokens_per_second"] = round(counts.completion_tokens / counts.engine_seconds, 1)
        if counts.filtered:
            facts["acceptance"] = round(self._accepted / counts.filtered, 3)
        if self.sender is not None and isinstance(engine := self.sender.engine, PaidEngine) and engine.spent:
            facts["spend"] = round(engine.spent, 4)
        return facts | ({"warning": self._warning} if self._warning else {})


def both_steps(
    rounds_of: Callable[[int, Batches], AbstractContextManager[Rounds]],
    batches: Batches,
    first: int = 1,
    hand_on: Callable[[Selection], Batches] = lambda selection: selection.batches,
) -> Generator[Rounds, None, None]:
    """Run the steps from `first` on, the second over what the first accepted, and yield the rounds of each.

    `rounds_of` opens a step's rounds over its rows; they are closed when the next ones are asked for. A step without
    rows ends it. `hand_on` chooses what step 2 reads, after the caller has seen step 1.
    """
    for step in range(first, 3):
        with rounds_of(step, batches) as rounds:
            rounds.run()
            if not rounds.tables.rows:
                return
            yield rounds
            if step == 1:
                batches = hand_on(rounds.selection)
