"""Requests of a paraphrase step without an answer: counted for `plan` and shards, with their texts for batch files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from paraclip.storage.artifacts import Artifact
from paraclip.storage.generations import GenerationStore
from paraclip.storage.roots import open_generations
from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.ingest import IngestedCaptions, ingested_captions
from paraclip.tasks.stages.paraphrase import step_batches
from paraclip_core.captions.tokens import CONTEXT_LENGTH
from paraclip_core.demo.synonyms import swappable
from paraclip_core.errors import ConfigError
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.engines.base import Prompt
from paraclip_core.paraphrase.generate import attempt_seed
from paraclip_core.paraphrase.judge import BLOCK_ROWS, JudgePool, JudgeSpec
from paraclip_core.paraphrase.parse import parse_answer
from paraclip_core.paraphrase.prompts import PromptTemplate, bare, prompt_for
from paraclip_core.paraphrase.requests import (
    Batches,
    GenerationCache,
    RequestKeys,
    RowCursor,
    StepTables,
    source_column,
    step_requests,
)
from paraclip_core.paraphrase.rounds import judge_spec, word_requests
from paraclip_core.paraphrase.select import rejected_for, select
from paraclip_core.progress import Progress, silent

BLOCK_REQUESTS = 16_384
VERDICTS_A_PART = 4096
SAMPLE = 1024
"""Missing texts that are looked at to tell their length."""
CHARS_PER_TOKEN, MESSAGE_CHARS = 3.9, 20
"""Of a prompt's text, and what a chat template puts around each message; measured on the few-shot prompts."""
TOKENS_PER_WORD = 1.15
"""Tokens of an answer for each word of its input, measured on the few-shot prompts."""


@dataclass(frozen=True)
class StepLeft:
    """A step before it runs."""

    rows: int
    """Rows that it looks at."""
    missing: int = 0
    """Different requests without an answer, of rejected rows' further attempts, too, as far as they are known."""
    accepted: int = 0
    """Rows with an accepted answer."""
    rejected: int = 0
    """Rows whose every answer was rejected."""
    prompt_tokens: float = 0.0
    """Of a request, examples included, estimated."""
    completion_tokens: float = 0.0
    """Of a request, all its answers together, estimated."""
    words: int = 0
    """Requests for single words that the missing texts lead to, estimated within a factor of two."""
    new_inputs: int = 0
    """Of step 1, what step 2 was not asked about yet and will be if it passes: answers without a verdict, as far as a
    sample says that they are new, and answers that are missing."""


def steps_left(
    run: Run, artifacts: Mapping[str, Artifact], captions: IngestedCaptions | None = None
) -> dict[int, StepLeft]:
    """What each step has left that is not finished.

    Step 2 of rows that have no accepted answer yet is not in it: what it asks is not known.
    """
    with _opened(run) as look:
        if "paraphrase_1" in artifacts:
            return {2: look.step_left(2, step_batches(run.store.download(artifacts["paraphrase_1"]).path, 2, 1.0))[0]}
        captions = captions or ingested_captions(run, artifacts, look.scratch)
        first, tables = look.step_left(1, step_batches(captions.folder, 1, run.paraphraser.options.fraction))
        first = replace(first, new_inputs=look.new_inputs(tables))
        return {1: first, 2: look.step_left(2, look.selected(tables))[0]}


def step_left(run: Run, step: int, upstream: Artifact) -> StepLeft:
    """What a step has left whose input is finished."""
    with _opened(run) as look:
        return look.step_left(step, step_batches(upstream.path, step, run.paraphraser.options.fraction))[0]


@contextmanager
def looking_for_requests(run: Run, progress: Progress = silent) -> Iterator[MissingRequests]:
    """What a run would ask; its temporary files last as long as the block."""
    options = run.paraphraser.options
    if not run.paraphraser.facts.asks:
        raise ConfigError(
            f"paraphrase.engine={options.engine} asks nothing, so there are no requests; name the engine whose model "
            "shall answer them"
        )
    if options.judge is not None:
        raise ConfigError(
            "paraphrase.judge asks about answers as they come, which a batch file cannot; import the answers with "
            "paraphrase.judge=null, and let `paraclip run` ask the judge"
        )
    if not options.model:
        raise ConfigError(
            f"paraphrase.engine={options.engine} has no paraphrase.model, by which a batch file names who shall "
            "answer; take engine openai, vllm or transformers"
        )
    with _opened(run, progress) as missing:
        yield missing


@contextmanager
def _opened(run: Run, progress: Progress = silent) -> Iterator[MissingRequests]:
    with TempDir("requests-") as scratch, ExitStack() as stack:
        cache = stack.enter_context(closing(open_generations(run.store)))
        yield MissingRequests(run, cache, scratch, progress, stack)


@dataclass(frozen=True)
class RequestBlock:
    """Some requests of one step and attempt that have no answer."""

    request: RequestKeys
    texts: list[str]

    @property
    def keys(self) -> list[bytes]:
        """The key of each text's request."""
        return self.request.keys(self.texts).to_pylist()


class MissingRequests:
    """Finds requests without an answer, as far as earlier answers say which there are.

    Step 2 asks about the accepted answers of step 1, and a further attempt about what was rejected. So :meth:`blocks`
    judges answers without a verdict first, and :meth:`step_left`, which only counts, leaves them out. The single words
    that some configurations ask for are not among the requests.
    """

    def __init__(
        self, run: Run, cache: GenerationStore, scratch: Path, progress: Progress, resources: ExitStack
    ) -> None:
        """Look with an open cache; `resources` are closed at the end."""
        self.run, self.cache, self.scratch = run, cache, scratch
        self.paraphraser, self.options = run.paraphraser, run.paraphraser.options
        self.words = False
        """Whether the run also asks for single words, without which nothing can be judged."""
        self.unjudged = 0
        """Answers that could not be judged for that reason."""
        self.unanswered = 0
        """Requests of step 1 without an answer."""
        self._progress, self._resources = progress, resources

    def step_left(self, step: int, batches: Batches) -> tuple[StepLeft, StepTables]:
        """What a step over these rows has left, and its tables."""
        tables, spec = self._tables(step, batches)
        rounds = [missing for _, missing in self._rounds(tables, spec)]
        rejected, accepted = len(tables.rejected()), tables.accepted()
        texts = _sample(batches, step, np.unique(np.concatenate(rounds)))
        prompt, answers = _tokens(prompt_for(self.options, step), texts, self.options.sampling.n)
        request = word_requests(self.options, self.paraphraser.model)
        words = _words(texts, len(rounds[0]), request, self.cache) if spec.words else 0
        return StepLeft(tables.rows, sum(map(len, rounds)), accepted, rejected, prompt, answers, words), tables

    def new_inputs(self, tables: StepTables) -> int:
        """What step 2 was not asked about yet and will be if it passes, see :class:`StepLeft`."""
        count = len(tables.missing(0))
        unjudged = tables.find_unjudged(0)
        with closing(tables.unjudged(SAMPLE)) as blocks:
            block = next(blocks, None)
        if block is None:
            return count
        request = step_requests(self.options, 2, self.paraphraser.model)
        completions = block.column("completions").to_pylist()
        keys = [[request.key(text) for text in map(parse_answer, answers) if text] for answers in completions]
        cached = self.cache.lookup(pa.array({key for some in keys for key in some}, pa.binary(16)))
        asked = set(cached.column("key").to_pylist())
        # Which of its answers comes first is for the gates to say.
        new = sum(bool(some) and asked.isdisjoint(some) for some in keys)
        return count + round(unjudged * new / block.num_rows)

    def prompts(self, block: RequestBlock) -> list[Prompt]:
        """What is asked in each request of a block."""
        request = block.request
        template, seed = prompt_for(self.options, request.step), attempt_seed(request.seed, request.attempt)
        return [Prompt(template.messages(text), text, request.step, seed) for text in block.texts]

    def blocks(self) -> Iterator[RequestBlock]:
        """The requests block by block, those of step 1 first; call it once."""
        artifacts = self.run.artifacts()
        if "paraphrase_1" in artifacts:
            rows = step_batches(self.run.store.download(artifacts["paraphrase_1"]).path, 2, 1.0)
        else:
            captions = ingested_captions(self.run, artifacts, self.scratch)
            tables, spec = self._tables(1, step_batches(captions.folder, 1, self.options.fraction))
            for block in self._blocks(tables, spec):
                self.unanswered += len(block.texts)
                yield block
            rows = self.selected(tables)
        yield from self._blocks(*self._tables(2, rows))

    def selected(self, tables: StepTables) -> Batches:
        """Step 2's rows, as far as step 1's answers are known."""
        selection = select(tables, self.options.keep, self._spec(tables.step).max_repeats)
        return lambda columns: (rows.select(list(columns)) for rows, _ in selection.batches())

    def _spec(self, step: int) -> JudgeSpec:
        return judge_spec(self.paraphraser, step, CONTEXT_LENGTH)

    def _tables(self, step: int, rows: Batches) -> tuple[StepTables, JudgeSpec]:
        spec = self._spec(step)
        self.words = self.words or bool(spec.words)
        tables = StepTables(
            step, self.cache, rows, spec.last_digest, self.scratch / f"step-{step}", text_gates=spec.digest
        )
        return self._resources.enter_context(closing(tables)), spec

    def _blocks(self, tables: StepTables, spec: JudgeSpec) -> Iterator[RequestBlock]:
        source = source_column(tables.step)
        for request, missing in self._rounds(tables, spec, lambda attempt: self._judge(tables, spec, attempt)):
            cursor = RowCursor(tables.batches([source]))
            for start in range(0, len(missing), BLOCK_REQUESTS):
                texts = cursor.take(missing[start : start + BLOCK_REQUESTS]).column(source).to_pylist()
                yield RequestBlock(request, texts)

    def _rounds(
        self, tables: StepTables, spec: JudgeSpec, judge: Callable[[int], None] = lambda attempt: None
    ) -> Iterator[tuple[RequestKeys, np.ndarray]]:
        """Each round's request, and the numbers of the rows that it adds to those without an answer."""

        def ask(attempt: int, rows: np.ndarray | None) -> tuple[RequestKeys, np.ndarray]:
            request = step_requests(self.options, tables.step, self.paraphraser.model, attempt)
            before = tables.missing(attempt)
            tables.ask(request, rows)
            judge(attempt)
            return request, np.setdiff1d(tables.missing(attempt), before)

        rows: np.ndarray | None = None
        for attempt in range(self.options.attempts):
            yield ask(attempt, rows)
            rows = tables.rejected()
            if not len(rows):
                break
        for reason in self.options.regenerate:
            for attempt, again in rejected_for(tables, reason, spec.max_repeats).items():
                yield ask(attempt, again)

    def _judge(self, tables: StepTables, spec: JudgeSpec, attempt: int) -> None:
        count = tables.find_unjudged(attempt)
        if not count:
            return
        if spec.words:
            self.unjudged += count
            return
        waiting: list[pa.RecordBatch] = []
        judged = 0
        with closing(JudgePool(spec, self.run.judges, self.scratch)) as pool:
            for _, verdicts in pool.judge(tables.unjudged(BLOCK_ROWS), count):
                waiting.append(verdicts)
                judged += verdicts.num_rows
                self._progress(judged, count, phase=f"judging answers of step {tables.step}")
                if sum(batch.num_rows for batch in waiting) >= VERDICTS_A_PART or judged == count:
                    self.cache.append_verdicts(pa.Table.from_batches(waiting))
                    waiting.clear()


def _sample(batches: Batches, step: int, rows: np.ndarray) -> list[str]:
    """Texts of some of these rows, spread over all of them."""
    chosen = rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE]
    if not len(chosen):
        return []
    source = source_column(step)
    return RowCursor(batches([source])).take(chosen).column(source).to_pylist()


def _tokens(prompt: PromptTemplate, texts: Iterable[str], answers: int) -> tuple[float, float]:
    """Tokens of a request and of its answers, by the length of the texts."""
    lengths = [(len(text), len(text.split())) for text in texts]
    count = max(len(lengths), 1)
    characters, words = (sum(column) / count for column in zip(*lengths, strict=True)) if lengths else (0.0, 0.0)
    fixed = sum(len(content) + MESSAGE_CHARS for _, content in prompt.messages("")) / CHARS_PER_TOKEN
    return fixed + characters / CHARS_PER_TOKEN, words * TOKENS_PER_WORD * answers


def _words(texts: list[str], of: int, request: RequestKeys, cache: GenerationCache) -> int:
    """Requests for words that `of` texts lead to, of which `texts` are some.

    New words grow with the square root of the texts (Heaps' law), and each leads to about one more: its synonyms are
    asked backwards.
    """
    words = sorted({word for text in texts for word in swappable(bare(text))})
    if not words:
        return 0
    missing = len(words) - cache.lookup(request.keys(words)).num_rows
    return round(2 * missing * (of / len(texts)) ** 0.5)
