"""The rounds of one step: request what is missing, judge what is not judged, again for what was rejected; then select.

A round is two set-wise joins (:mod:`paraclip_core.paraphrase.requests`) and the work that they leave. What was answered
or judged before, by whichever run, is never requested or judged again, so a killed round resumes where it was. Without
an engine the rounds count what they would request, which is all that `plan` and batch files need.

Of the attempts of a row the last accepted one counts. An answer that was accepted as the best one for more than
`max_repeats` different inputs is a flood, and no input keeps it; the next of its accepted answers takes its place.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paraclip_core.config import ParaphraseOptions, SamplingOptions
from paraclip_core.demo.synonyms import THESAURUS, WORD_SAMPLING, WORD_STEP, bases
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.engines import (
    CheckedEngine,
    Completion,
    Engine,
    PaidEngine,
    Prompt,
    StreamingEngine,
)
from paraclip_core.paraphrase.judge import BLOCK_ROWS, Judged, JudgePool, ModelJudge
from paraclip_core.paraphrase.requests import (
    INPUT_COLUMNS,
    GenerationCache,
    PromptTemplate,
    RequestKeys,
    StepTables,
    answers_block,
    prompt_for,
    sampling_json,
    source_column,
)
from paraclip_core.progress import Progress, silent
from paraclip_core.tables import GENERATIONS, PARAPHRASE_REJECTS, PARAPHRASES

log = logging.getLogger(__name__)

KEEP_SECONDS = 2.0
"""What an engine hands over one by one is kept at least so often: a kill loses no more of what was paid for."""
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

Part = list[tuple[str, bytes, Completion]]
"""Text, key and completion of some requests."""
Phase = Callable[[int], None]
"""Told how many more are done."""
Numbered = list[tuple[int, Completion]]
"""Number of the prompt, and its completion."""


@dataclass
class Counts:
    """What a step did, for its manifest."""

    captions: int = 0
    """Rows that were to be paraphrased."""
    requested: int = 0
    """Different requests, all attempts together, words included."""
    cached: int = 0
    """Those of them that the cache had answered."""
    generated: int = 0
    judged: int = 0
    """Answers that were judged now; the others had been judged before."""
    accepted: int = 0
    """Captions with an accepted answer."""
    kept: int = 0
    """Rows written: several of a caption where `paraphrase.keep` allows that."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Rejections by reason, one for each caption and attempt."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    engine_seconds: float = 0.0
    judge_seconds: float = 0.0

    def metrics(self) -> dict[str, Any]:
        seconds = {name: round(getattr(self, name), 3) for name in ("engine_seconds", "judge_seconds")}
        return {**vars(self), "rejected": dict(sorted(self.rejected.items())), **seconds}


class RequestSender:
    """Asks, and keeps what comes before anything else is done with it: chunk by chunk, or as an engine streams it."""

    def __init__(self, engine: Engine, cache: GenerationCache, counts: Counts, chunk: int) -> None:
        """What is asked and kept is added to `counts`."""
        self._engine, self._cache, self.counts, self._chunk = engine, cache, counts, chunk

    def answers(
        self,
        request: RequestKeys,
        template: PromptTemplate,
        sampling: SamplingOptions,
        texts: Sequence[str],
        started: Callable[[int], Phase],
    ) -> dict[str, Sequence[str]]:
        """Text → raw answers, asked for where the cache does not hold them; without those that the engine has none for.

        `started` is told how many are to be asked for, where any are, and returns who is told of each that came.
        """
        array = request.keys(texts)
        keys: list[bytes] = array.to_pylist()
        cached = self._cache.lookup(array)
        by_key = dict(zip(cached.column("key").to_pylist(), cached.column("completions").to_pylist(), strict=True))
        answers = {text: by_key[key] for text, key in zip(texts, keys, strict=True) if key in by_key}
        todo = [(text, key) for text, key in zip(texts, keys, strict=True) if key not in by_key]
        self.counts.requested += len(texts)
        self.counts.cached += len(answers)
        if todo:
            came = started(len(todo))
            for part in self.ask(request, template, sampling, todo):
                answers |= {text: completion.texts for text, _, completion in part}
                came(len(part))
        return answers

    def ask(
        self,
        request: RequestKeys,
        template: PromptTemplate,
        sampling: SamplingOptions,
        todo: Sequence[tuple[str, bytes]],
    ) -> Generator[Part, None, None]:
        """Answers to the texts and keys in `todo`, part by part, in the order in which they come."""
        seed = attempt_seed(request.seed, request.attempt)
        prompts = [Prompt(template.messages(text), text, request.step, seed) for text, _ in todo]
        streams, done = isinstance(self._engine, StreamingEngine), 0
        for numbered in self._streamed(prompts, sampling) if streams else self._chunks(prompts, sampling):
            # What is judged now is what a cached run will judge.
            part = [(*todo[i], replace(done, texts=tuple(map(storable, done.texts)))) for i, done in numbered]
            if part:
                self._keep(part, request)
            self.counts.generated += len(part)
            done += len(part)
            yield part
        if done != len(todo):
            raise EngineError(f"{self._engine.name} gave {done} completions for {len(todo)} prompts")

    def _chunks(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> Iterator[Numbered]:
        for start in range(0, len(prompts), self._chunk):
            some = prompts[start : start + self._chunk]
            began = time.monotonic()
            completions = self._engine.generate(some, sampling)
            self.counts.engine_seconds += time.monotonic() - began
            if len(completions) != len(some):
                raise EngineError(f"{self._engine.name} gave {len(completions)} completions for {len(some)} prompts")
            yield list(enumerate(completions, start))

    def _keep(self, part: Part, request: RequestKeys) -> None:
        count = len(part)
        columns = {
            "key": [key for _, key, _ in part],
            "step": [request.step] * count,
            "attempt": [request.attempt] * count,
            "input": [storable(text) for text, _, _ in part],
            "engine": [self._engine.name] * count,
            "model": [request.model] * count,
            "prompt": [request.prompt_id] * count,
            "prompt_hash": [request.prompt_hash] * count,
            "sampling": [request.sampling] * count,
            "seed": [request.seed] * count,
            "completions": [list(completion.texts) for _, _, completion in part],
            "prompt_tokens": [completion.prompt_tokens for _, _, completion in part],
            "completion_tokens": [completion.completion_tokens for _, _, completion in part],
        }
        self._cache.append(pa.Table.from_pydict(columns, schema=GENERATIONS))
        self.counts.prompt_tokens += sum(columns["prompt_tokens"])
        self.counts.completion_tokens += sum(columns["completion_tokens"])

    def _streamed(self, prompts: Sequence[Prompt], sampling: SamplingOptions) -> Iterator[Numbered]:
        assert isinstance(self._engine, StreamingEngine)
        enough = max(1, self._chunk // 2)
        waiting: Numbered = []
        failure: BaseException | None = None
        ended = False
        with closing(self._engine.stream(prompts, sampling)) as stream:
            began = time.monotonic()
            while not ended:
                try:
                    item = next(stream)
                except StopIteration:
                    ended = True
                except BaseException as error:
                    # An interrupt, too, must not cost what was answered before it.
                    failure, ended = error, True
                else:
                    waiting += [item] if item is not None else []
                now = time.monotonic()
                if waiting and (ended or len(waiting) >= enough or now - began >= KEEP_SECONDS):
                    self.counts.engine_seconds += now - began
                    yield sorted(waiting, key=itemgetter(0))
                    waiting, began = [], time.monotonic()
        if failure is not None:
            raise failure


def attempt_seed(seed: int, attempt: int) -> int:
    """Seed of an attempt's prompts: another attempt must draw other answers."""
    return (seed + 7919 * attempt) % 2**31


def storable(text: str) -> str:
    """Text that UTF-8 can hold: lone surrogates, which a model's byte tokens can give, become a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


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
        engine: Engine | None,
        cache: GenerationCache,
        tables: StepTables,
        pool: JudgePool | None,
        request: RequestKeys,
        *,
        max_repeats: int | None = None,
        with_words: bool = False,
        model_judge: ModelJudge | None = None,
    ) -> None:
        """Prepare a step; `options` are those that matter to the engine, `request` has the keys of the first attempt.

        Without an engine nothing is asked, and `missing` says what would be; without a pool nothing is judged.
        An answer to more than `max_repeats` inputs is a flood, None: no answer is. `with_words`: also ask for other
        words for single words, and try answers with those swapped. `model_judge` has the last word.
        """
        self.options, self.cache, self.tables = options, cache, tables
        self.counts = Counts()
        self.missing: list[tuple[RequestKeys, np.ndarray]] = []
        """Without an engine: the request of each round, and the numbers of the rows that it would ask about."""
        self.waiting = 0
        """Without an engine: answers that nobody can judge, because single words are to be asked for first."""
        self.samples: deque[Sample] = deque(maxlen=SAMPLES)
        """The latest answers that were judged."""
        self.progress: Progress = silent
        """Told how far it is, phase by phase."""
        self.on_judged: Callable[[pa.RecordBatch, pa.RecordBatch], None] = lambda block, verdicts: None
        """Told of each block (`tables.ANSWERS`) that was judged, with its verdicts."""
        self.model_judge = model_judge
        self._engine, self._pool, self._max_repeats, self._with_words = engine, pool, max_repeats, with_words
        self._prompt, self._request = prompt_for(options, tables.step), request
        self._sender = None if engine is None else RequestSender(engine, cache, self.counts, options.chunk)
        self._warning, self._accepted = "", 0
        self._verdicts: list[pa.RecordBatch] = []

    @property
    def engine(self) -> Engine:
        assert self._engine is not None
        return self._engine

    @property
    def pool(self) -> JudgePool:
        assert self._pool is not None
        return self._pool

    def run(self) -> None:
        """Ask and judge until every row has an accepted answer or no attempt is left."""
        try:
            for attempt, rows in self._attempts():
                self._round(attempt, rows)
        finally:
            # Nothing that was judged before a failure is judged again.
            self._keep_verdicts()

    def _attempts(self) -> Iterator[tuple[int, np.ndarray | None]]:
        """The number of each round, and its rows, None: all."""
        yield 0, None
        for attempt in range(1, self.options.attempts):
            rows = self.tables.rejected()
            if not len(rows):
                break
            yield attempt, rows
        for reason in self.options.regenerate:
            yield from rejected_for(self.tables, reason, self._max_repeats).items()

    def select(self) -> Selection:
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
        if self._engine is None:
            counted = [rows for asked, rows in self.missing if asked.attempt == attempt]
            self.missing.append((request, np.setdiff1d(missing, np.concatenate(counted)) if counted else missing))
        else:
            self._ask(request, missing)
        self._judge(request)

    def _ask(self, request: RequestKeys, missing: np.ndarray) -> None:
        first_time = request.attempt == 0
        if len(missing) and first_time and isinstance(self.engine, CheckedEngine):
            self.engine.check()
        phase = self._phase("asking", len(missing))
        if first_time and len(missing) > FIRST_ANSWERS:
            first, missing = missing[:FIRST_ANSWERS], missing[FIRST_ANSWERS:]
            self._generate(request, first, phase)
            self._judge(request, first)
            self._check_first(first)
        self._generate(request, missing, phase)
        shared = self.model_judge is not None and self.model_judge.engine is self.engine
        last = request.attempt + 1 == self.options.attempts
        if last and not (self.options.regenerate or self._with_words or shared):
            # Nothing more will be asked: others may have the GPU while answers are judged.
            self.engine.close()

    def _generate(self, request: RequestKeys, rows: np.ndarray, phase: Phase) -> None:
        """Send the requests of these rows; verdicts come meanwhile where judging takes nothing from the engine."""
        sender, pool = self._sender, self.pool
        assert sender is not None
        # Processes that judge take seconds to start.
        ahead = len(rows) > SENT_AHEAD and not (self.engine.facts.shares_cores or self._with_words)
        for asked in self.tables.with_texts(request, rows, SENT_ROWS):
            keys: list[bytes] = asked.column("generation").to_pylist()
            place = {key: number for number, key in enumerate(keys)}
            todo = list(zip(asked.column("asked").to_pylist(), keys, strict=True))
            for part in sender.ask(request, self._prompt, self.options.sampling, todo):
                if ahead:
                    block = asked.take([place[key] for _, key, _ in part])
                    pool.offer(answers_block(block, pa.array([completion.texts for _, _, completion in part])))
                    self._take(pool.offered())
                phase(len(part))
        self._take(pool.offered(wait=True))
        self._keep_verdicts()

    def _judge(self, request: RequestKeys, rows: np.ndarray | None = None) -> None:
        """Judge the round's answers that have no verdict, of all rows or of these."""
        if self._pool is None:
            return
        if count := self.tables.find_unjudged(request.attempt, rows):
            self._judge_texts(count)
        if self.model_judge is not None and self.tables.find_undecided(request.attempt, rows):
            self._ask_judge(self.model_judge)

    def _judge_texts(self, count: int) -> None:
        if self._with_words:
            if self._engine is None:
                self.waiting += count
                return
            texts = (text for block in self.tables.unjudged(BLOCK_ROWS) for text in _bases(block, self.tables.step))
            self.pool.find_synonyms(self._words, texts)
        began = time.monotonic()
        self._take(self.pool.judge(self.tables.unjudged(BLOCK_ROWS), count), self._phase("judging", count))
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
            self.on_judged(block, verdicts)
            if sum(batch.num_rows for batch in self._verdicts) >= KEPT_VERDICTS:
                self._keep_verdicts()
            if phase is not None:
                phase(verdicts.num_rows)

    def _keep_verdicts(self) -> None:
        if self._verdicts:
            self.cache.append_verdicts(pa.Table.from_batches(self._verdicts))
            self._verdicts.clear()

    def _check_first(self, rows: np.ndarray) -> None:
        """Warn where little of the first answers is accepted, before the others are paid for."""
        reasons = self.tables.reasons(rows)
        share = reasons.pop(None, 0) / len(rows)
        if share >= FEWEST_ACCEPTED:
            return
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        rejected = [sample for sample in self.samples if sample.outcome != "kept"]
        samples = "".join(f"\n  {one.input!r} -> {one.answer!r} ({one.outcome})" for one in rejected[:3])
        log.warning(
            f"{share:.0%} of the first {len(rows)} answers of {self.engine.model} at step {self.tables.step} are "
            f"accepted ({listed}); `paraclip paraphrase` shows each gate's verdict, docs/gates.md has the "
            f"presets:{samples}"
        )
        self._warning = f"{share:.0%} of the first {len(rows)} answers accepted ({listed})"

    def _words(self, words: Sequence[str]) -> dict[str, Sequence[str]]:
        """Word → raw answers, asked for where the cache does not hold them."""
        request = word_requests(self.options, self.engine.model)
        assert self._sender is not None
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
        if isinstance(self._engine, PaidEngine) and self._engine.spent:
            facts["spend"] = round(self._engine.spent, 4)
        return facts | ({"warning": self._warning} if self._warning else {})


def _sample(source: str, verdict: Mapping[str, Any]) -> Sample:
    accepted, reason, detail = (verdict[name] for name in ("accepted", "reason", "detail"))
    answer = accepted[0]["answer"] if accepted else verdict["answer"] or ""
    outcome = "kept" if accepted else f"{reason}: {detail}" if detail else str(reason)
    return Sample(*(text[:LONGEST_SAMPLE] for text in (source, answer, outcome)))


def word_requests(options: ParaphraseOptions, model: str) -> RequestKeys:
    """The keys of requests for other words for single words, which both steps share."""
    sampling = sampling_json(WORD_SAMPLING)
    return RequestKeys(WORD_STEP, model, THESAURUS.id, THESAURUS.hash, sampling, options.seed, attempt=0)


def _bases(block: pa.RecordBatch, step: int) -> Iterator[str]:
    """Texts that words are swapped in, of each request of a block."""
    columns = (block.column(name).to_pylist() for name in ("source", "caption", "completions"))
    for source, caption, completions in zip(*columns, strict=True):
        yield from bases(source, caption, completions, step)


# Punctuation and case make no other answer.
PLAIN = r"""
CREATE OR REPLACE MACRO plain(answer) AS hash(trim(regexp_replace(lower(answer), '[^\pL\pN]+', ' ', 'g')))
"""

# An input is told by the key of its first request.
INPUTS = "SELECT accepted, key AS input FROM judged"
INPUTS_ASKED_AGAIN = """
SELECT accepted, first.key AS input FROM judged JOIN asked first ON first.row = judged.row AND first.attempt = 0
"""
FLOODS = """
SET VARIABLE floods = (
  SELECT coalesce(list(spoken), []) FROM (
    SELECT spoken FROM (
      SELECT DISTINCT plain(accepted[1].answer) AS spoken, input FROM ({}) WHERE len(accepted) > 0
    ) GROUP BY spoken HAVING count(*) > ?
  )
)
"""

OUTCOMES = """
CREATE OR REPLACE VIEW outcomes AS
SELECT row, attempt, key, accepted, answer, reason, detail, similarity FROM judged
"""

OUTCOMES_WITHOUT_FLOODS = """
CREATE OR REPLACE VIEW outcomes AS
SELECT row, attempt, key, dry AS accepted,
  CASE WHEN len(dry) < len(accepted) THEN accepted[1].answer ELSE answer END AS answer,
  CASE WHEN len(dry) < len(accepted) THEN 'repeated_flood' ELSE reason END AS reason,
  CASE WHEN len(dry) < len(accepted) THEN getvariable('flooded') ELSE detail END AS detail,
  CASE WHEN len(dry) < len(accepted) THEN accepted[1].similarity ELSE similarity END AS similarity
FROM (
  SELECT *, list_filter(accepted, lambda one: NOT list_contains(getvariable('floods'), plain(one.answer))) AS dry
  FROM judged
)
"""

CHOSEN = "SELECT row, key, accepted[1:getvariable('keep')] AS accepted FROM outcomes WHERE len(accepted) > 0"
LAST_CHOSEN = f"{CHOSEN} QUALIFY attempt = max(attempt) OVER (PARTITION BY row)"
REJECTED = """
SELECT row, attempt, key, reason, coalesce(detail, '') AS detail, answer FROM outcomes WHERE len(accepted) = 0
"""
LAST_REJECTED = """
SELECT row, max(attempt) + 1 AS attempt FROM outcomes
GROUP BY row HAVING NOT bool_or(len(accepted) > 0) AND arg_max(reason, attempt) = ? ORDER BY row
"""


@dataclass
class Selection:
    """The rows and rejects of a step, to be read once, and how many there are."""

    tables: StepTables
    chosen: Path
    rejected: Path
    accepted: int = 0
    """Captions with a kept answer."""
    kept: int = 0
    """Rows that are kept, several of a caption where `paraphrase.keep` allows that."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Rejections by reason, one for each caption and attempt."""

    def batches(self) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
        """Rows (`tables.PARAPHRASES`) and rejects (`tables.PARAPHRASE_REJECTS`), batch by batch, in input order."""
        chosen, rejected = _Sorted(self.chosen), _Sorted(self.rejected)
        start = 0
        for batch in self.tables.batches(INPUT_COLUMNS[self.tables.step]):
            stop = start + batch.num_rows
            rows = _paraphrases(batch, chosen.before(stop), start, self.tables.step)
            yield rows, _rejects(batch, rejected.before(stop), start, self.tables.step)
            start = stop


def select(tables: StepTables, keep: int, max_repeats: int | None) -> Selection:
    """Choose among what was accepted: `keep` answers of a row, at most. `max_repeats` None: no answer is a flood."""
    selection = Selection(tables, tables.scratch / "chosen.parquet", tables.scratch / "rejected.parquet")
    with tables.judged():
        _view_outcomes(tables, max_repeats)
        con = tables.con
        con.execute("SET VARIABLE keep = ?", [keep])
        _copy(tables, LAST_CHOSEN if _asked_again(tables) else CHOSEN, "row", selection.chosen)
        _copy(tables, REJECTED, "row, attempt", selection.rejected)
    path = str(selection.chosen)
    selection.accepted, selection.kept = con.execute(
        "SELECT count(*), coalesce(sum(len(accepted)), 0)::BIGINT FROM read_parquet(?)", [path]
    ).fetchall()[0]
    reasons = "SELECT reason, count(*) FROM read_parquet(?) GROUP BY reason ORDER BY reason"
    selection.reasons = dict(con.execute(reasons, [str(selection.rejected)]).fetchall())
    return selection


def rejected_for(tables: StepTables, reason: str, max_repeats: int | None) -> dict[int, np.ndarray]:
    """Rows (int64, ascending) without an accepted answer whose last one was rejected for this reason, by the number of
    their next attempt, the lowest first."""
    with tables.judged():
        _view_outcomes(tables, max_repeats)
        columns = tables.con.execute(LAST_REJECTED, [reason]).fetchnumpy()
    rows, attempts = columns["row"].astype(np.int64), columns["attempt"]
    return {attempt: rows[attempts == attempt] for attempt in np.unique(attempts).tolist()}


def _view_outcomes(tables: StepTables, max_repeats: int | None) -> None:
    con, flooded = tables.con, False
    if max_repeats is not None and tables.rows > max_repeats:
        con.execute(PLAIN)
        con.execute(FLOODS.format(INPUTS_ASKED_AGAIN if _asked_again(tables) else INPUTS), [max_repeats])
        con.execute("SET VARIABLE flooded = ?", [f"the same answer for more than {max_repeats} inputs"])
        flooded = con.execute("SELECT len(getvariable('floods')) > 0").fetchall()[0][0]
    con.execute(OUTCOMES_WITHOUT_FLOODS if flooded else OUTCOMES)


def _asked_again(tables: StepTables) -> bool:
    """Whether there are further attempts."""
    return tables.con.execute("SELECT coalesce(max(attempt), 0) > 0 FROM asked").fetchall()[0][0]


def _copy(tables: StepTables, query: str, order: str, path: Path) -> None:
    # A path is no parameter of COPY; quotes in it are doubled as in any SQL string.
    quoted = str(path).replace("'", "''")
    tables.con.execute(f"COPY ({query} ORDER BY {order}) TO '{quoted}' (FORMAT parquet, COMPRESSION lz4)")


class _Sorted:
    """Rows of a Parquet file that is sorted by its column `row`, read piece by piece."""

    def __init__(self, path: Path) -> None:
        file = pq.ParquetFile(path)
        self._batches = file.iter_batches(batch_size=65_536)
        self._rest = pa.Table.from_batches([], schema=file.schema_arrow)
        self._ended = False

    def before(self, stop: int) -> pa.Table:
        """The rows below `stop` that were not given yet."""
        pieces = [self._rest]
        while not self._ended and not (pieces[-1].num_rows and pieces[-1].column("row")[-1].as_py() >= stop):
            batch = next(self._batches, None)
            self._ended = batch is None
            if batch is not None and batch.num_rows:
                pieces.append(pa.Table.from_batches([batch]))
        whole = pa.concat_tables(pieces)
        count = int(np.searchsorted(whole.column("row").to_numpy(), stop))
        self._rest = whole.slice(count)
        return whole.slice(0, count).combine_chunks()


def _paraphrases(batch: pa.RecordBatch, chosen: pa.Table, start: int, step: int) -> pa.RecordBatch:
    lists = _whole(chosen.column("accepted"))
    accepted, parents = lists.flatten(), np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy()))
    rows = chosen.column("row").to_numpy()[parents] - start
    # Nothing is copied where every row is kept once.
    base = batch if np.array_equal(rows, np.arange(batch.num_rows)) else batch.take(pa.array(rows))
    columns = {name: base.column(name) for name in INPUT_COLUMNS[step]}
    columns |= {
        f"paraphrase_{step}": accepted.field("answer"),
        f"paraphrase_{step}_tokens": accepted.field("tokens"),
        f"similarity_{step}": accepted.field("similarity"),
        f"generation_{step}": _whole(chosen.column("key")).take(pa.array(parents)),
    }
    return _batch(columns, PARAPHRASES, len(rows))


def _rejects(batch: pa.RecordBatch, rejected: pa.Table, start: int, step: int) -> pa.RecordBatch:
    rows = batch.take(pa.array(rejected.column("row").to_numpy() - start))
    columns = {name: _whole(rejected.column(name)) for name in ("attempt", "reason", "detail", "answer")}
    columns |= {
        "caption_id": rows.column("caption_id"),
        "step": pa.repeat(pa.scalar(step, pa.int8()), rows.num_rows),
        "input": rows.column(source_column(step)),
        "generation": _whole(rejected.column("key")),
    }
    return _batch(columns, PARAPHRASE_REJECTS, rows.num_rows)


def _batch(columns: dict[str, pa.Array], schema: pa.Schema, rows: int) -> pa.RecordBatch:
    arrays = [columns[f.name].cast(f.type) if f.name in columns else pa.nulls(rows, f.type) for f in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)
