"""The rounds of one step: generate what is missing, judge what is not judged, and again for what was rejected.

A round is two set-wise joins (:mod:`paraclip_core.paraphrase.step_tables`) and the work that they leave. What was
answered or judged before, by whichever run, is never asked for or judged again, so a killed round goes on where it was.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from paraclip_core.config import ParaphraseOptions
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.conditions import Condition, conditions_of
from paraclip_core.paraphrase.generate import Counts, RequestSender
from paraclip_core.paraphrase.prompts import prompt_for
from paraclip_core.paraphrase.protocol import CheckedEngine, Engine, GenerationCache, PaidEngine
from paraclip_core.paraphrase.requests import RequestKeys, RowCursor, sampling_json, source_column, step_requests
from paraclip_core.paraphrase.select import Selection, latest_rows, select
from paraclip_core.paraphrase.small_model.synonyms import (
    THESAURUS,
    WORD_SAMPLING,
    WORD_STEP,
    bases,
)
from paraclip_core.paraphrase.step_tables import NO_PARENT, StepTables
from paraclip_core.paraphrase.verdicts import BLOCK_ROWS, JudgePool
from paraclip_core.progress import Progress, silent
from paraclip_core.tables import ANSWERS

__all__ = ["Rounds", "Sample", "rows_named", "word_requests"]

log = logging.getLogger(__name__)

SENT_ROWS = 16_384
"""Requests whose texts are in memory at once."""
SENT_AHEAD = 2048
"""Requests that are worth judging while others are still asked for."""
KEPT_VERDICTS = 4096
"""Verdicts that a kill may cost; judging them again is free."""
FIRST_ANSWERS = 64
FEWEST_ACCEPTED = 1 / 3
SAMPLES = 20
LONGEST_SAMPLE = 300


Facts = dict[str, float | int | str]


class Sample(NamedTuple):
    """An answer for who watches."""

    input: str
    answer: str
    outcome: str
    """`kept`, or a reason with its detail."""


class _Request(NamedTuple):
    """A row whose request is sent."""

    text: str
    key: bytes
    caption: str
    parent: bytes


class Rounds:
    """One step over its rows. Run it, then select."""

    def __init__(
        self,
        options: ParaphraseOptions,
        engine: Engine,
        cache: GenerationCache,
        tables: StepTables,
        pool: JudgePool,
        *,
        max_repeats: int | None = None,
        with_words: bool = False,
    ) -> None:
        """Prepare a step.

        Args:
            options: the paraphrase options, as far as they matter to the engine.
            engine: asked for what the cache does not hold.
            cache: keeps generations and verdicts.
            tables: what the step asks, beside what the cache holds.
            pool: judges.
            max_repeats: inputs for which one answer is no flood yet; None: no answer is a flood.
            with_words: also ask for other words for single words, and try answers with those swapped.
        """
        self.options, self.engine, self.cache, self.tables = options, engine, cache, tables
        self.counts = Counts()
        self.samples: deque[Sample] = deque(maxlen=SAMPLES)
        """The latest answers that were judged."""
        self.progress: Progress = silent
        """Told how far it is, phase by phase."""
        self._pool, self._max_repeats, self._with_words = pool, max_repeats, with_words
        self._sender = RequestSender(engine, cache, self.counts, options.seed, options.chunk)
        self._warning = ""
        self._reasons: Counter[str | None] = Counter()
        """Verdicts of this pass by reason, None: accepted."""
        self._verdicts: list[pa.RecordBatch] = []

    def run(self) -> None:
        """Ask and judge until every row has an accepted answer or no attempt is left.

        Raises:
            EngineError: the engine failed (all that it had answered is kept), or too little of its first answers was
                accepted.
            StageError: a judging process died.
        """
        try:
            rows: np.ndarray | None = None
            for attempt in range(self.options.attempts):
                self._round(attempt, rows)
                if attempt + 1 < self.options.attempts:
                    rows = self.tables.rejected()
                    if not len(rows):
                        break
            for condition in conditions_of(self.options.regenerate):
                for attempt, again in rows_named(self.tables, condition, self._max_repeats).items():
                    self._round(attempt, again)
        finally:
            # Nothing that was judged before a failure is judged again.
            self._keep_verdicts()

    def select(self) -> Selection:
        """Choose among what was accepted."""
        # Step 2 gives each of step 1's rewrites one of its own.
        selection = select(self.tables, self.options.keep if self.tables.step == 1 else 1, self._max_repeats)
        counts = self.counts
        counts.captions, counts.accepted, counts.kept = self.tables.rows, selection.accepted, selection.kept
        counts.rejected = selection.reasons
        return selection

    def _round(self, attempt: int, rows: np.ndarray | None) -> None:
        request = step_requests(self.options, self.tables.step, self.engine.model, attempt)
        before = self.tables.requests(attempt)
        self.tables.ask(request, rows)
        requested, missing = self.tables.requests(attempt) - before, self.tables.missing(attempt)
        self.counts.requested += requested
        self.counts.cached += requested - len(missing)
        if len(missing) and attempt == 0 and isinstance(self.engine, CheckedEngine):
            self.engine.check()
        phase = _Phase(self.progress, "asking", len(missing), self._facts)
        if attempt == 0 and len(missing) > FIRST_ANSWERS:
            first, missing = missing[:FIRST_ANSWERS], missing[FIRST_ANSWERS:]
            self._generate(request, first, phase)
            self._judge(request, first)
            self._check_first()
        self._generate(request, missing, phase)
        if attempt + 1 == self.options.attempts and not (self.options.regenerate or self._with_words):
            # Nothing more will be asked: others may have the GPU while answers are judged.
            self.engine.close()
        self._judge(request)

    def _generate(self, request: RequestKeys, rows: np.ndarray, phase: _Phase) -> None:
        """Send the requests of these rows; verdicts come meanwhile where judging takes nothing from the engine."""
        # Processes that judge take seconds to start.
        ahead = len(rows) > SENT_AHEAD and not (self.engine.facts.shares_cores or self._with_words)
        cursor = RowCursor(self.tables.batches(self._text_columns()))
        for start in range(0, len(rows), SENT_ROWS):
            todo = {sent.key: sent for sent in self._requests(request, cursor.take(rows[start : start + SENT_ROWS]))}
            pairs = [(sent.text, key) for key, sent in todo.items()]
            prompt = prompt_for(self.options, request.step)
            for part in self._sender.ask(prompt, request.step, self.options.sampling, request.attempt, pairs):
                if ahead:
                    self._pool.offer(_block([(todo[key], completion.texts) for _, key, completion in part]))
                    for block, verdicts in self._pool.offered():
                        self._take(block, verdicts)
                phase.add(len(part))
        for block, verdicts in self._pool.offered(wait=True):
            self._take(block, verdicts)
        self._keep_verdicts()

    def _text_columns(self) -> list[str]:
        return ["caption"] if self.tables.step == 1 else ["caption", "paraphrase_1", "generation_1"]

    def _requests(self, request: RequestKeys, rows: pa.Table) -> Iterator[_Request]:
        texts = rows.column(source_column(self.tables.step)).to_pylist()
        captions = rows.column("caption").to_pylist()
        parents = rows.column("generation_1").to_pylist() if self.tables.step == 2 else [NO_PARENT] * len(texts)
        yield from map(_Request, texts, request.keys(texts).to_pylist(), captions, parents)

    def _judge(self, request: RequestKeys, rows: np.ndarray | None = None) -> None:
        """Judge the round's answers that have no verdict, of all rows or of these."""
        count = self.tables.find_unjudged(request.attempt, rows)
        if not count:
            return
        if self._with_words:
            texts = (text for block in self.tables.unjudged(BLOCK_ROWS) for text in _bases(block, self.tables.step))
            self._pool.find_synonyms(self._words, texts)
        began = time.monotonic()
        phase = _Phase(self.progress, "judging", count, self._facts)
        for block, verdicts in self._pool.judge(self.tables.unjudged(BLOCK_ROWS), count):
            self._take(block, verdicts)
            phase.add(verdicts.num_rows)
        self._keep_verdicts()
        self.counts.judge_seconds += time.monotonic() - began

    def _take(self, block: pa.RecordBatch, verdicts: pa.RecordBatch) -> None:
        self.counts.judged += verdicts.num_rows
        reasons = verdicts.column("reason").to_pylist()
        self._reasons.update(reasons)
        for row in range(max(0, verdicts.num_rows - SAMPLES), verdicts.num_rows):
            accepted, answer = verdicts.column("accepted")[row].as_py(), verdicts.column("answer")[row].as_py()
            detail = verdicts.column("detail")[row].as_py()
            outcome = "kept" if accepted else f"{reasons[row]}: {detail}" if detail else str(reasons[row])
            text = accepted[0]["answer"] if accepted else answer or ""
            sample = (block.column("source")[row].as_py(), text, outcome)
            self.samples.append(Sample(*(part[:LONGEST_SAMPLE] for part in sample)))
        self._verdicts.append(verdicts)
        if sum(batch.num_rows for batch in self._verdicts) >= KEPT_VERDICTS:
            self._keep_verdicts()

    def _keep_verdicts(self) -> None:
        if self._verdicts:
            self.cache.append_verdicts(pa.Table.from_batches(self._verdicts))
            self._verdicts.clear()

    def _check_first(self) -> None:
        """Warn, or stop, where little of the first answers is accepted, before the others are paid for.

        Raises:
            EngineError: less than `paraphrase.stop_below` is accepted.
        """
        judged = sum(self._reasons.values())
        share = self._reasons[None] / max(judged, 1)
        if share >= max(FEWEST_ACCEPTED, self.options.stop_below):
            return
        reasons = ", ".join(f"{reason} {count}" for reason, count in self._reasons.most_common() if reason)
        samples = "".join(
            f"\n  {sample.input!r} -> {sample.answer!r} ({sample.outcome})"
            for sample in [sample for sample in self.samples if sample.outcome != "kept"][:3]
        )
        message = (
            f"{share:.0%} of the first {judged} answers of {self.engine.model} at step {self.tables.step} are accepted "
            f"({reasons}); `paraclip paraphrase` shows each gate's verdict, docs/gates.md has the presets:{samples}"
        )
        if share < self.options.stop_below:
            raise EngineError(f"{message}\nStopped, as paraphrase.stop_below is {self.options.stop_below:g}")
        log.warning("%s", message)
        self._warning = f"{share:.0%} of the first {judged} answers accepted ({reasons})"

    def _words(self, words: Sequence[str]) -> dict[str, Sequence[str]]:
        """Word → raw answers, asked for where the cache does not hold them."""
        request = word_requests(self.options, self.engine.model)
        array = request.keys(words)
        keys: list[bytes] = array.to_pylist()
        cached = self.cache.lookup(array)
        by_key = dict(zip(cached.column("key").to_pylist(), cached.column("completions").to_pylist(), strict=True))
        answers = {word: by_key[key] for word, key in zip(words, keys, strict=True) if key in by_key}
        todo = [(word, key) for word, key in zip(words, keys, strict=True) if key not in by_key]
        self.counts.requested += len(words)
        self.counts.cached += len(answers)
        phase = _Phase(self.progress, "words", len(todo), self._facts)
        for part in self._sender.ask(THESAURUS, WORD_STEP, WORD_SAMPLING, 0, todo) if todo else ():
            answers |= {word: completion.texts for word, _, completion in part}
            phase.add(len(part))
        return {word: answers[word] for word in words if word in answers}

    def _facts(self) -> Facts:
        counts, judged = self.counts, sum(self._reasons.values())
        facts: Facts = {"generated": counts.generated, "cached": counts.cached}
        if counts.engine_seconds and counts.generated:
            facts["requests_per_second"] = round(counts.generated / counts.engine_seconds, 1)
            facts["tokens_per_second"] = round(counts.completion_tokens / counts.engine_seconds, 1)
        if judged:
            facts["acceptance"] = round(self._reasons[None] / judged, 3)
        if isinstance(self.engine, PaidEngine) and self.engine.spent:
            facts["spend"] = round(self.engine.spent, 4)
        return facts | ({"warning": self._warning} if self._warning else {})


class _Phase:
    """How far one phase of a round is, with the time that is left of it."""

    def __init__(self, progress: Progress, name: str, total: int, facts: Callable[[], Facts]) -> None:
        self._progress, self._name, self._total, self._facts = progress, name, total, facts
        self._done, self._began = 0, time.monotonic()

    def add(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        seconds = time.monotonic() - self._began
        left = round(seconds * (self._total - self._done) / self._done)
        self._progress(self._done, self._total, phase=self._name, eta_seconds=left, **self._facts())


def rows_named(tables: StepTables, condition: Condition, max_repeats: int | None) -> dict[int, np.ndarray]:
    """Attempt → rows that a condition wants asked for at it, the lowest attempt first.

    Args:
        tables: what was asked, judged as far as it is answered.
        condition: looked at for each row.
        max_repeats: as in :func:`paraclip_core.paraphrase.select.select`.
    """
    rows: dict[int, list[np.ndarray]] = {}
    for numbers, table in latest_rows(tables, max_repeats):
        chosen = condition.rows(table)
        attempts = table.column("attempt").to_numpy()[chosen] + 1
        for attempt in np.unique(attempts).tolist():
            rows.setdefault(attempt, []).append(numbers[chosen][attempts == attempt])
    return {attempt: np.concatenate(rows[attempt]) for attempt in sorted(rows)}


def word_requests(options: ParaphraseOptions, model: str) -> RequestKeys:
    """The keys of requests for other words for single words, which both steps share."""
    sampling = sampling_json(WORD_SAMPLING)
    return RequestKeys(WORD_STEP, model, THESAURUS.id, THESAURUS.hash, sampling, options.seed, attempt=0)


def _bases(block: pa.RecordBatch, step: int) -> Iterator[str]:
    """Texts that words are swapped in, of each request of a block."""
    columns = (block.column(name).to_pylist() for name in ("source", "caption", "completions"))
    for source, caption, completions in zip(*columns, strict=True):
        yield from bases(source, caption, completions, step)


def _block(answered: Sequence[tuple[_Request, Sequence[str]]]) -> pa.RecordBatch:
    columns = {
        "generation": [request.key for request, _ in answered],
        "parent": [request.parent for request, _ in answered],
        "caption": [request.caption for request, _ in answered],
        "source": [request.text for request, _ in answered],
        "completions": [list(texts) for _, texts in answered],
    }
    return pa.RecordBatch.from_pydict(columns, schema=ANSWERS)
