"""The rounds of one step: request what is missing, judge what is not judged, again for what was rejected; then select.

A round is two set-wise joins (`step_tables.py`) and the work that they leave. What was answered
or judged before, by whichever run, is never requested or judged again, so a killed round resumes where it was. Without
an engine the rounds count what they would request, which is all that `plan` and batch files need.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paraclip_core.config import ParaphraseOptions
from paraclip_core.demo.synonyms import THESAURUS, WORD_SAMPLING, WORD_STEP, bases
from paraclip_core.errors import EngineError
from paraclip_core.paraphrase.engines import (
    CheckedEngine,
    Completion,
    Engine,
    PaidEngine,
    Prompt,
    SamplingOptions,
    StreamingEngine,
)
from paraclip_core.paraphrase.judge import (
    BLOCK_ROWS,
    QUESTION,
    Judged,
    JudgePool,
    decide_by_model,
    judge_requests,
)
from paraclip_core.paraphrase.keys import RequestKeys, sampling_json
from paraclip_core.paraphrase.prompts import PromptTemplate, prompt_for
from paraclip_core.paraphrase.step_tables import (
    INPUT_COLUMNS,
    GenerationCache,
    RowCursor,
    StepTables,
    answers_block,
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
"""Requests that are worth judging while others are still under way."""
KEPT_VERDICTS = 4096
"""Verdicts that a kill may cost; judging them again is free."""
FIRST_ANSWERS = 64
FEWEST_ACCEPTED = 1 / 3
SHOWN_REJECTS, SHOWN_CHARS = 3, 300

Part = list[tuple[str, bytes, Completion]]
"""Text, key and completion of some requests."""
Phase = Callable[[int], None]
"""Called with how many more are done."""


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
        with_words: bool = False,
    ) -> None:
        """Prepare a step; `options` are those that matter to the engine, `request` has the keys of the first attempt.

        Without an engine nothing is requested, and `missing` says what would be; without a pool nothing is judged.
        `with_words`: also request other words for single words, and try answers with those swapped.
        """
        self.options, self.cache, self.tables = options, cache, tables
        self.counts = Counts()
        self.missing: list[tuple[RequestKeys, np.ndarray]] = []
        """Without an engine: the request of each round, and the numbers of the rows that it would send."""
        self.progress: Progress = silent
        self.on_judged: Callable[[pa.RecordBatch, pa.RecordBatch], None] = lambda block, verdicts: None
        """Called with each block (`tables.ANSWERS`) that was judged, and its verdicts."""
        self.model_judge: ModelJudge | None = None
        self._pool, self._with_words = pool, with_words
        self._request = request
        self._sender = None if engine is None else RequestSender(engine, cache, self.counts, options.chunk)
        self._accepted, self._warning = 0, ""
        self._verdicts: list[pa.RecordBatch] = []

    @property
    def engine(self) -> Engine:
        assert self._sender is not None
        return self._sender.engine

    @property
    def pool(self) -> JudgePool:
        assert self._pool is not None
        return self._pool

    @property
    def keep(self) -> int:
        """Answers of a row that become rows, at most: step 2 gives each of step 1's rewrites one of its own."""
        return self.options.keep if self.tables.step == 1 else 1

    def run(self) -> None:
        """Request and judge until every row has an accepted answer or no attempt is left."""
        rows: np.ndarray | None = None
        try:
            for attempt in range(self.options.attempts):
                if attempt:
                    # Nobody knows whether a row's next attempt follows while this one has no answer.
                    rows = self.tables.rejected(attempt - 1 if self._sender is None else None)
                    if not len(rows):
                        break
                request = replace(self._request, attempt=attempt)
                missing = self._find_missing(request, rows)
                if self._sender is None:
                    self.missing.append((request, missing))
                else:
                    self._complete(request, missing)
                self._judge(attempt)
        finally:
            # Nothing that was judged before a failure is judged again.
            self._keep_verdicts()

    def select(self) -> Selection:
        selection = select(self.tables, self.keep)
        counts = self.counts
        counts.captions, counts.accepted, counts.kept = self.tables.rows, selection.accepted, selection.kept
        counts.rejected = selection.reasons
        return selection

    def _find_missing(self, request: RequestKeys, rows: np.ndarray | None) -> np.ndarray:
        """Add a round's requests to the tables; the rows whose request has no answer."""
        requested, missing = self.tables.add(request, rows), self.tables.missing(request.attempt)
        self.counts.requested += requested
        self.counts.cached += requested - len(missing)
        return missing

    def _complete(self, request: RequestKeys, missing: np.ndarray) -> None:
        """Get the answers that are missing, the first of them judged before the others are paid for."""
        phase = self._phase("asking", len(missing))
        if request.attempt == 0 and len(missing) > FIRST_ANSWERS:
            first, missing = missing[:FIRST_ANSWERS], missing[FIRST_ANSWERS:]
            self._send(request, first, phase)
            self._judge(0, first)
            self._warn_of_few(first)
        self._send(request, missing, phase)
        shared = self.model_judge is not None and self.model_judge.sender.engine is self.engine
        last = request.attempt + 1 == self.options.attempts
        if last and not (self._with_words or shared):
            # Nothing more will be requested: others may have the GPU while answers are judged.
            self.engine.close()

    def _send(self, request: RequestKeys, rows: np.ndarray, phase: Phase) -> None:
        """Send the requests of these rows; verdicts come meanwhile where judging takes nothing from the engine."""
        sender, pool = self._sender, self.pool
        assert sender is not None
        template = prompt_for(self.options, request.step)
        # Processes that judge take seconds to start.
        ahead = len(rows) > SENT_AHEAD and not (self.engine.facts.shares_cores or self._with_words)
        for requests in self.tables.with_texts(request, rows, SENT_ROWS):
            keys: list[bytes] = requests.column("generation").to_pylist()
            number = {key: n for n, key in enumerate(keys)}
            todo = list(zip(requests.column("text").to_pylist(), keys, strict=True))
            for part in sender.send(request, template, self.options.sampling, todo):
                if ahead:
                    block = requests.take([number[key] for _, key, _ in part])
                    pool.offer(answers_block(block, pa.array([completion.texts for _, _, completion in part])))
                    self._take(pool.offered())
                phase(len(part))
        self._take(pool.offered(wait=True))
        self._keep_verdicts()

    def _judge(self, attempt: int, rows: np.ndarray | None = None) -> None:
        """Judge the attempt's answers that have no verdict, of all rows or of these."""
        if self._pool is None:
            return
        count = self.tables.find_unjudged(attempt, rows)
        # Words without an engine: which answers there are to judge is not known before those are requested.
        if count and not (self._with_words and self._sender is None):
            if self._with_words:
                texts = (text for block in self.tables.unjudged(BLOCK_ROWS) for text in _bases(block, self.tables.step))
                self._pool.find_synonyms(self._words, texts)
            began = time.monotonic()
            self._take(self._pool.judge(self.tables.unjudged(BLOCK_ROWS), count), self._phase("judging", count))
            self._keep_verdicts()
            self.counts.judge_seconds += time.monotonic() - began
        if self.model_judge is not None and self.tables.find_undecided(attempt, rows):
            self._decide_by_model(self.model_judge)

    def _decide_by_model(self, judge: ModelJudge) -> None:
        engine = judge.sender.engine
        request = judge_requests(engine.model, judge.sampling)

        def answers(questions: Sequence[str]) -> Mapping[str, Sequence[str]]:
            started = partial(self._phase, "asking the judge")
            return judge.sender.answers(request, QUESTION, judge.sampling, questions, started)

        if engine is not self.engine:
            # One of them at a time has the GPU.
            self.engine.close()
        began = time.monotonic()
        for captions, verdicts in self.tables.undecided(SENT_ROWS):
            decided = decide_by_model(verdicts, captions, self.tables.gates, engine.model, self.keep, answers)
            self.cache.append_verdicts(pa.Table.from_batches([decided]))
        if engine is not self.engine:
            engine.close()
        self.counts.judge_seconds += time.monotonic() - began

    def _take(self, judged: Iterable[Judged], phase: Phase | None = None) -> None:
        """Collect verdicts, and keep them now and then."""
        for block, verdicts in judged:
            self.counts.judged += verdicts.num_rows
            self._accepted += verdicts.column("reason").null_count
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

    def _warn_of_few(self, rows: np.ndarray) -> None:
        """Warn where few of the first answers are accepted, before the others are paid for."""
        tables = self.tables
        verdicts = tables.first_verdicts(rows)
        rejects = [verdict for verdict in verdicts if verdict["reason"] is not None]
        share = (len(verdicts) - len(rejects)) / len(rows)
        if share >= FEWEST_ACCEPTED:
            return
        counts = Counter(verdict["reason"] for verdict in rejects).most_common()
        listed = ", ".join(f"{reason} {count}" for reason, count in counts)
        shown, examples = rejects[:SHOWN_REJECTS], ""
        texts = RowCursor(tables.batches([tables.source])).take(np.array([verdict["row"] for verdict in shown]))
        for text, verdict in zip(texts.column(tables.source).to_pylist(), shown, strict=True):
            answer, detail = verdict["answer"] or "", verdict["detail"]
            outcome = f"{verdict['reason']}: {detail}" if detail else verdict["reason"]
            examples += f"\n  {text[:SHOWN_CHARS]!r} -> {answer[:SHOWN_CHARS]!r} ({outcome[:SHOWN_CHARS]})"
        self._warning = f"{share:.0%} of the first {len(rows)} answers accepted ({listed})"
        log.warning(
            f"{share:.0%} of the first {len(rows)} answers of {self.engine.model} at step {tables.step} are accepted "
            f"({listed}); `paraclip paraphrase` shows each gate's verdict, docs/gates.md has the presets:{examples}"
        )

    def _words(self, words: Sequence[str]) -> dict[str, Sequence[str]]:
        """Word → raw answers, requested where the cache does not hold them."""
        assert self._sender is not None
        request = word_requests(self.options, self.engine.model)
        return self._sender.answers(request, THESAURUS, WORD_SAMPLING, words, partial(self._phase, "words"))

    def _phase(self, name: str, total: int) -> Phase:
        """Reports the progress of one phase of a round, with the time that is left of it, whenever more are done."""
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
        if self._sender is not None and isinstance(engine := self._sender.engine, PaidEngine) and engine.spent:
            facts["spend"] = round(engine.spent, 4)
        return facts | ({"warning": self._warning} if self._warning else {})


class RequestSender:
    """Sends requests to an engine, and keeps each completion before anything else is done with it."""

    def __init__(self, engine: Engine, cache: GenerationCache, counts: Counts, chunk: int) -> None:
        """What is sent and kept is added to `counts`."""
        self.engine, self.counts = engine, counts
        self._cache, self._chunk, self._checked = cache, chunk, False

    def answers(
        self,
        request: RequestKeys,
        template: PromptTemplate,
        sampling: SamplingOptions,
        texts: Sequence[str],
        started: Callable[[int], Phase],
    ) -> dict[str, Sequence[str]]:
        """Text → raw answers, from the cache or else from the engine.

        `started` is called with the number of requests to send, where there are any, and gives their phase.
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
            phase = started(len(todo))
            for part in self.send(request, template, sampling, todo):
                answers |= {text: completion.texts for text, _, completion in part}
                phase(len(part))
        return answers

    def send(
        self,
        request: RequestKeys,
        template: PromptTemplate,
        sampling: SamplingOptions,
        todo: Sequence[tuple[str, bytes]],
    ) -> Generator[Part, None, None]:
        """Completions of the texts and keys in `todo`, part by part, in the order in which they come."""
        engine = self.engine
        if isinstance(engine, CheckedEngine) and not self._checked:
            engine.check()
            self._checked = True
        prompts = prompts_of(request, template, [text for text, _ in todo])
        if isinstance(engine, StreamingEngine):
            stream, enough, seconds = engine.stream(prompts, sampling), max(1, self._chunk // 2), KEEP_SECONDS
        else:
            stream, enough, seconds = self._in_chunks(prompts, sampling), self._chunk, math.inf
        sent, waiting, began = 0, list[tuple[int, Completion]](), time.monotonic()
        with closing(stream):
            try:
                for item in stream:
                    waiting += [] if item is None else [item]
                    if waiting and (len(waiting) >= enough or time.monotonic() - began >= seconds):
                        full, waiting = waiting, []
                        self.counts.engine_seconds += time.monotonic() - began
                        sent += len(full)
                        yield self._keep(full, request, todo)
                        began = time.monotonic()
            finally:
                # An interrupt or a dead engine must not cost what was answered before it.
                self.counts.engine_seconds += time.monotonic() - began
                rest = self._keep(waiting, request, todo)
        if rest:
            yield rest
        if sent + len(rest) != len(todo):
            raise EngineError(f"{engine.name} gave {sent + len(rest)} completions for {len(todo)} prompts")

    def _in_chunks(
        self, prompts: Sequence[Prompt], sampling: SamplingOptions
    ) -> Generator[tuple[int, Completion], None, None]:
        for start in range(0, len(prompts), self._chunk):
            chunk = prompts[start : start + self._chunk]
            completions = self.engine.generate(chunk, sampling)
            if len(completions) != len(chunk):
                raise EngineError(f"{self.engine.name} gave {len(completions)} completions for {len(chunk)} prompts")
            yield from enumerate(completions, start)

    def _keep(
        self, completions: list[tuple[int, Completion]], request: RequestKeys, todo: Sequence[tuple[str, bytes]]
    ) -> Part:
        """Put completions, each with the number of its request in `todo`, into the cache."""
        part: Part = []
        for number, completion in sorted(completions, key=itemgetter(0)):
            # What is judged now is what a cached run will judge.
            part.append((*todo[number], replace(completion, texts=tuple(map(storable, completion.texts)))))
        if not part:
            return part
        rows = [
            {
                **request.columns(self.engine.name),
                "key": key,
                "input": storable(text),
                "completions": completion.texts,
                "prompt_tokens": completion.prompt_tokens,
                "completion_tokens": completion.completion_tokens,
            }
            for text, key, completion in part
        ]
        self._cache.append(pa.Table.from_pylist(rows, schema=GENERATIONS))
        self.counts.generated += len(part)
        self.counts.prompt_tokens += sum(completion.prompt_tokens for _, _, completion in part)
        self.counts.completion_tokens += sum(completion.completion_tokens for _, _, completion in part)
        return part


@dataclass(frozen=True)
class ModelJudge:
    """A language model that decides on what the gates accepted."""

    sender: RequestSender
    sampling: SamplingOptions


def prompts_of(request: RequestKeys, template: PromptTemplate, texts: Iterable[str]) -> list[Prompt]:
    """What an engine gets for requests about these texts."""
    # Another attempt must draw other answers.
    seed = (request.seed + 7919 * request.attempt) % 2**31
    return [Prompt(template.messages(text), text, request.step, seed) for text in texts]


def storable(text: str) -> str:
    """Text that UTF-8 can hold: lone surrogates, which a model's byte tokens can give, become a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def word_requests(options: ParaphraseOptions, model: str) -> RequestKeys:
    """The keys of requests for other words for single words, which both steps share."""
    sampling = sampling_json(WORD_SAMPLING)
    return RequestKeys(WORD_STEP, model, THESAURUS.id, THESAURUS.hash, sampling, options.seed, attempt=0)


def _bases(block: pa.RecordBatch, step: int) -> Iterator[str]:
    """Texts that words are swapped in, of each request of a block."""
    columns = (block.column(name).to_pylist() for name in ("source", "caption", "completions"))
    for source, caption, completions in zip(*columns, strict=True):
        yield from bases(source, caption, completions, step)


# A row is asked for again only while it has no accepted answer, so no two of its attempts have one.
CHOSEN = "SELECT row, key, accepted[1:getvariable('keep')] AS accepted FROM judged WHERE len(accepted) > 0"
REJECTED = """
SELECT row, attempt, key, reason, coalesce(detail, '') AS detail, answer FROM judged WHERE len(accepted) = 0
"""


@dataclass(frozen=True)
class Selection:
    """The rows and rejects of a step, and how many there are."""

    tables: StepTables
    chosen: Path
    rejected: Path
    accepted: int
    """Captions with a kept answer."""
    kept: int
    """Rows that are kept, several of a caption where `paraphrase.keep` allows that."""
    reasons: dict[str, int]
    """Rejections by reason, one for each caption and attempt."""

    def rows(self) -> Iterator[pa.RecordBatch]:
        """Rows (`tables.PARAPHRASES`), batch by batch, in input order."""
        step = self.tables.step
        for chosen, inputs in self._with_inputs(self.chosen, INPUT_COLUMNS[step]):
            lists = chosen.column("accepted")
            answers = lists.flatten()
            # Of each answer the number of its caption in the batch.
            of = pa.array(np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy())))
            columns = {name: inputs.column(name).take(of) for name in INPUT_COLUMNS[step]}
            columns |= {
                f"paraphrase_{step}": answers.field("answer"),
                f"paraphrase_{step}_tokens": answers.field("tokens"),
                f"similarity_{step}": answers.field("similarity"),
                f"generation_{step}": chosen.column("key").take(of),
            }
            yield _batch(columns, PARAPHRASES, len(answers))

    def rejects(self) -> Iterator[pa.RecordBatch]:
        """Rejects (`tables.PARAPHRASE_REJECTS`), batch by batch, in input order."""
        step = self.tables.step
        source = source_column(step)
        for rejected, inputs in self._with_inputs(self.rejected, ("caption_id", source)):
            columns = {name: rejected.column(name) for name in ("attempt", "reason", "detail", "answer")}
            columns |= {
                "caption_id": inputs.column("caption_id"),
                "step": pa.repeat(step, len(rejected)),
                "input": inputs.column(source),
                "generation": rejected.column("key"),
            }
            yield _batch(columns, PARAPHRASE_REJECTS, len(rejected))

    def _with_inputs(self, path: Path, columns: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
        """Batches of a file that is sorted by its column `row`, each with those rows of the step."""
        cursor = RowCursor(self.tables.batches(columns))
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                (inputs,) = cursor.take(batch.column("row").to_numpy()).combine_chunks().to_batches()
                yield batch, inputs


def select(tables: StepTables, keep: int) -> Selection:
    """Choose among what was accepted: `keep` answers of a row, at most."""
    con = tables.con
    chosen, rejected = (str(tables.scratch / f"{name}.parquet") for name in ("chosen", "rejected"))
    with tables.judged():
        con.execute("SET VARIABLE keep = ?", [keep])
        con.sql(f"{CHOSEN} ORDER BY row").write_parquet(chosen, compression="lz4")
        con.sql(f"{REJECTED} ORDER BY row, attempt").write_parquet(rejected, compression="lz4")
    count = "SELECT count(*), coalesce(sum(len(accepted)), 0)::BIGINT FROM read_parquet(?)"
    ((accepted, kept),) = con.execute(count, [chosen]).fetchall()
    reasons = "SELECT reason, count(*) FROM read_parquet(?) GROUP BY reason ORDER BY reason"
    by_reason = dict(con.execute(reasons, [rejected]).fetchall())
    return Selection(tables, Path(chosen), Path(rejected), accepted, kept, by_reason)


def _batch(columns: dict[str, pa.Array], schema: pa.Schema, rows: int) -> pa.RecordBatch:
    arrays = [columns[f.name].cast(f.type) if f.name in columns else pa.nulls(rows, f.type) for f in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
