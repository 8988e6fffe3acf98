"""The rounds of one step: generate what is missing, judge what is not judged, and again for what was rejected.

A round is two set-wise joins (:mod:`paraclip_core.paraphrase.requests`) and the work that they leave. What was
answered or judged before, by whichever run, is never asked for or judged again, so a killed round goes on where it was.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from paraclip_core.config import ParaphraseOptions
from paraclip_core.demo.synonyms import THESAURUS, WORD_SAMPLING, WORD_STEP, bases
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.engines import Paraphraser
from paraclip_core.paraphrase.engines.base import CheckedEngine, Engine, PaidEngine
from paraclip_core.paraphrase.generate import Counts, RequestSender
from paraclip_core.paraphrase.judge import BLOCK_ROWS, Judged, JudgePool, JudgeSpec
from paraclip_core.paraphrase.model_judge import ModelJudge, judge_requests
from paraclip_core.paraphrase.prompts import prompt_for
from paraclip_core.paraphrase.requests import (
    GenerationCache,
    RequestKeys,
    StepTables,
    answers_block,
    sampling_json,
)
from paraclip_core.paraphrase.select import Selection, rejected_for, select
from paraclip_core.progress import Progress, silent

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
Phase = Callable[[int], None]
"""Told how many more are done."""


class Sample(NamedTuple):
    """An answer for who watches."""

    input: str
    answer: str
    outcome: str
    """`kept`, or a reason with its detail."""


class Rounds:
    """One step over its rows. Run it, then select."""

    def __init__(
        self,
        options: ParaphraseOptions,
        engine: Engine,
        cache: GenerationCache,
        tables: StepTables,
        pool: JudgePool,
        request: RequestKeys,
        *,
        max_repeats: int | None = None,
        with_words: bool = False,
        model_judge: ModelJudge | None = None,
    ) -> None:
        """Prepare a step; `options` are those that matter to the engine, `request` has the keys of the first attempt.

        An answer to more than `max_repeats` inputs is a flood, None: no answer is. `with_words`: also ask for other
        words for single words, and try answers with those swapped. `model_judge` has the last word.
        """
        self.options, self.engine, self.cache, self.tables = options, engine, cache, tables
        self.counts = Counts()
        self.samples: deque[Sample] = deque(maxlen=SAMPLES)
        """The latest answers that were judged."""
        self.progress: Progress = silent
        """Told how far it is, phase by phase."""
        self._pool, self._max_repeats, self._with_words = pool, max_repeats, with_words
        self.model_judge = model_judge
        self._prompt, self._request = prompt_for(options, tables.step), request
        self._sender = RequestSender(engine, cache, self.counts, options.chunk)
        self._warning, self._accepted = "", 0
        self._verdicts: list[pa.RecordBatch] = []

    def run(self) -> None:
        """Ask and judge until every row has an accepted answer or no attempt is left."""
        try:
            rows: np.ndarray | None = None
            for attempt in range(self.options.attempts):
                self._round(attempt, rows)
                if attempt + 1 < self.options.attempts:
                    rows = self.tables.rejected()
                    if not len(rows):
                        break
            for reason in self.options.regenerate:
                for attempt, again in rejected_for(self.tables, reason, self._max_repeats).items():
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
        request = replace(self._request, attempt=attempt)
        before = self.tables.requests(attempt)
        self.tables.ask(request, rows)
        requested, missing = self.tables.requests(attempt) - before, self.tables.missing(attempt)
        self.counts.requested += requested
        self.counts.cached += requested - len(missing)
        if len(missing) and attempt == 0 and isinstance(self.engine, CheckedEngine):
            self.engine.check()
        phase = self._phase("asking", len(missing))
        if attempt == 0 and len(missing) > FIRST_ANSWERS:
            first, missing = missing[:FIRST_ANSWERS], missing[FIRST_ANSWERS:]
            self._generate(request, first, phase)
            self._judge(request, first)
            self._check_first(first)
        self._generate(request, missing, phase)
        shared = self.model_judge is not None and self.model_judge.engine is self.engine
        if attempt + 1 == self.options.attempts and not (self.options.regenerate or self._with_words or shared):
            # Nothing more will be asked: others may have the GPU while answers are judged.
            self.engine.close()
        self._judge(request)

    def _generate(self, request: RequestKeys, rows: np.ndarray, phase: Phase) -> None:
        """Send the requests of these rows; verdicts come meanwhile where judging takes nothing from the engine."""
        # Processes that judge take seconds to start.
        ahead = len(rows) > SENT_AHEAD and not (self.engine.facts.shares_cores or self._with_words)
        for asked in self.tables.with_texts(request, rows, SENT_ROWS):
            keys: list[bytes] = asked.column("generation").to_pylist()
            place = {key: number for number, key in enumerate(keys)}
            todo = list(zip(asked.column("asked").to_pylist(), keys, strict=True))
            for part in self._sender.ask(request, self._prompt, self.options.sampling, todo):
                if ahead:
                    block = asked.take([place[key] for _, key, _ in part])
                    self._pool.offer(answers_block(block, pa.array([completion.texts for _, _, completion in part])))
                    self._take(self._pool.offered())
                phase(len(part))
        self._take(self._pool.offered(wait=True))
        self._keep_verdicts()

    def _judge(self, request: RequestKeys, rows: np.ndarray | None = None) -> None:
        """Judge the round's answers that have no verdict, of all rows or of these."""
        count = self.tables.find_unjudged(request.attempt, rows)
        if count:
            self._judge_texts(count)
        if self.model_judge is not None and self.tables.find_undecided(request.attempt, rows):
            self._ask_judge(self.model_judge)

    def _judge_texts(self, count: int) -> None:
        if self._with_words:
            texts = (text for block in self.tables.unjudged(BLOCK_ROWS) for text in _bases(block, self.tables.step))
            self._pool.find_synonyms(self._words, texts)
        began = time.monotonic()
        self._take(self._pool.judge(self.tables.unjudged(BLOCK_ROWS), count), self._phase("judging", count))
        self._keep_verdicts()
        self.counts.judge_seconds += time.monotonic() - began

    def _ask_judge(self, judge: ModelJudge) -> None:
        """Let a language model decide on what the gates accepted."""
        if judge.engine is not self.engine:
            # One of them at a time has the GPU.
            self.engine.close()
        began = time.monotonic()
        for captions, verdicts in self.tables.undecided(SENT_ROWS):
            decided = judge.judge(verdicts, captions, self.tables.gates, partial(self._phase, "asking the judge"))
            self.cache.append_verdicts(pa.Table.from_batches([decided]))
        if judge.engine is not self.engine:
            judge.engine.close()
        self.counts.judge_seconds += time.monotonic() - began

    def _take(self, judged: Iterable[Judged], phase: Phase | None = None) -> None:
        """Keep verdicts, and the latest of them as samples."""
        for block, verdicts in judged:
            self.counts.judged += verdicts.num_rows
            self._accepted += verdicts.column("reason").null_count
            latest = max(0, verdicts.num_rows - SAMPLES)
            sources = block.column("source").slice(latest).to_pylist()
            self.samples.extend(map(_sample, sources, verdicts.slice(latest).to_pylist()))
            self._verdicts.append(verdicts)
            if sum(batch.num_rows for batch in self._verdicts) >= KEPT_VERDICTS:
                self._keep_verdicts()
            if phase is not None:
                phase(verdicts.num_rows)

    def _keep_verdicts(self) -> None:
        if self._verdicts:
            self.cache.append_verdicts(pa.Table.from_batches(self._verdicts))
            self._verdicts.clear()

    def _check_first(self, rows: np.ndarray) -> None:
        """Warn, or stop, where little of the first answers is accepted, before the others are paid for."""
        reasons = self.tables.reasons(rows)
        share = reasons.pop(None, 0) / len(rows)
        if share >= max(FEWEST_ACCEPTED, self.options.stop_below):
            return
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        rejected = [sample for sample in self.samples if sample.outcome != "kept"]
        samples = "".join(f"\n  {one.input!r} -> {one.answer!r} ({one.outcome})" for one in rejected[:3])
        message = (
            f"{share:.0%} of the first {len(rows)} answers of {self.engine.model} at step {self.tables.step} are "
            f"accepted ({listed}); `paraclip paraphrase` shows each gate's verdict, docs/gates.md has the "
            f"presets:{samples}"
        )
        if share < self.options.stop_below:
            raise EngineError(f"{message}\nStopped, as paraphrase.stop_below is {self.options.stop_below:g}")
        log.warning("%s", message)
        self._warning = f"{share:.0%} of the first {len(rows)} answers accepted ({listed})"

    def _words(self, words: Sequence[str]) -> dict[str, Sequence[str]]:
        """Word → raw answers, asked for where the cache does not hold them."""
        request = word_requests(self.options, self.engine.model)
        answers = self._sender.answers(request, THESAURUS, WORD_SAMPLING, words, partial(self._phase, "words"))
        return {word: answers[word] for word in words if word in answers}

    def _phase(self, name: str, total: int) -> Phase:
        """Tells the progress of one phase of a round, with the time that is left of it, whenever some more are done."""
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
        if counts.judged:
            facts["acceptance"] = round(self._accepted / counts.judged, 3)
        if isinstance(self.engine, PaidEngine) and self.engine.spent:
            facts["spend"] = round(self.engine.spent, 4)
        return facts | ({"warning": self._warning} if self._warning else {})


def _sample(source: str, verdict: Mapping[str, Any]) -> Sample:
    accepted, reason, detail = (verdict[name] for name in ("accepted", "reason", "detail"))
    answer = accepted[0]["answer"] if accepted else verdict["answer"] or ""
    outcome = "kept" if accepted else f"{reason}: {detail}" if detail else str(reason)
    return Sample(*(text[:LONGEST_SAMPLE] for text in (source, answer, outcome)))


def judge_spec(paraphraser: Paraphraser, step: int, context_length: int) -> JudgeSpec:
    """What a process needs to judge a step's answers; the text tower reads `context_length` tokens."""
    gates = paraphraser.gates
    if step == 1:
        # Only step 2 has it, and changing it must not make step 1's verdicts new.
        gates = gates.model_copy(update={"min_caption_similarity": -1.0})
    words = ""
    if paraphraser.asks_words(step):
        request = word_requests(paraphraser.options, paraphraser.model)
        words = f"{request.model} {request.seed} {request.prompt_hash.hex()}"
    opinion = ""
    if paraphraser.judge is not None:
        asked = judge_requests(paraphraser.judge.model, paraphraser.judge.options.sampling)
        keep = paraphraser.options.keep if step == 1 else 1
        opinion = f"{asked.model} {asked.prompt_hash.hex()} {asked.sampling} {keep}"
    return JudgeSpec(gates, step, paraphraser.prompts[step].examples, context_length, words, opinion)


def word_requests(options: ParaphraseOptions, model: str) -> RequestKeys:
    """The keys of requests for other words for single words, which both steps share."""
    sampling = sampling_json(WORD_SAMPLING)
    return RequestKeys(WORD_STEP, model, THESAURUS.id, THESAURUS.hash, sampling, options.seed, attempt=0)


def _bases(block: pa.RecordBatch, step: int) -> Iterator[str]:
    """Texts that words are swapped in, of each request of a block."""
    columns = (block.column(name).to_pylist() for name in ("source", "caption", "completions"))
    for source, caption, completions in zip(*columns, strict=True):
        yield from bases(source, caption, completions, step)
