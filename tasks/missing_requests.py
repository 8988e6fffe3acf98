"""The requests of a run that have no answer, with their texts: what batch files carry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from paraclip_core.config import ParaphraseOptions, Settings
from paraclip_core.errors import ConfigError
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.conditions import conditions_of
from paraclip_core.paraphrase.engines import make_engine, relevant_options
from paraclip_core.paraphrase.generate import attempt_seed
from paraclip_core.paraphrase.prompts import prompt_for
from paraclip_core.paraphrase.protocol import Engine, Prompt
from paraclip_core.paraphrase.requests import Batches, RequestKeys, RowCursor, source_column, step_requests
from paraclip_core.paraphrase.rounds import rows_named
from paraclip_core.paraphrase.select import select
from paraclip_core.paraphrase.step_tables import StepTables
from paraclip_core.paraphrase.verdicts import BLOCK_ROWS, JudgePool, JudgeSpec
from paraclip_core.progress import Progress, silent
from storage.artifacts import Artifact, ArtifactStore
from storage.generations import GenerationStore
from storage.roots import open_generations
from tasks.dag import STAGES, resolve
from tasks.models import model_hashes
from tasks.requests import captions_folder
from tasks.run import finished_artifacts
from tasks.stages.paraphrase import judge_spec, step_batches

__all__ = ["MissingRequests", "RequestBlock", "looking_for_requests"]

BLOCK_REQUESTS = 16_384
VERDICTS_A_PART = 4096


@dataclass(frozen=True)
class RequestBlock:
    """Some requests of one step and attempt that have no answer."""

    request: RequestKeys
    texts: list[str]

    @property
    def keys(self) -> list[bytes]:
        """The key of each text's request."""
        return self.request.keys(self.texts).to_pylist()


@contextmanager
def looking_for_requests(
    settings: Settings, store: ArtifactStore, progress: Progress = silent
) -> Iterator[MissingRequests]:
    """What a run with these settings would ask; its temporary files last as long as the block.

    Raises:
        ConfigError: the engine asks nothing, or it is not known which model would be asked.
        InputError: a source file is missing or bad as a whole.
    """
    options = relevant_options(settings.paraphrase)
    engine = make_engine(options, settings.data.root, hash_files=model_hashes(settings))
    if not engine.facts.asks:
        raise ConfigError(
            f"paraphrase.engine={options.engine} asks nothing, so there are no requests; name the engine whose model "
            "shall answer them"
        )
    if not options.model:
        raise ConfigError(
            f"paraphrase.engine={options.engine} has no paraphrase.model, by which a batch file names who shall "
            "answer; take engine openai, vllm or transformers"
        )
    names = ("scenes", "ingest", "paraphrase_1")
    nodes = resolve(settings, store, {name: STAGES[name] for name in names})
    artifacts = finished_artifacts(nodes, store)
    with TempDir("requests-") as scratch, ExitStack() as stack:
        cache = stack.enter_context(closing(open_generations(store)))
        stack.enter_context(closing(engine))
        yield MissingRequests(settings, store, artifacts, engine, cache, scratch, progress, stack)


class MissingRequests:
    """Finds requests without an answer, as far as earlier answers say which there are.

    Step 2 asks about the accepted answers of step 1, and a further attempt about what was rejected, so answers without
    a verdict are judged first. The single words that some configurations ask for are not among the requests.
    """

    def __init__(
        self,
        settings: Settings,
        store: ArtifactStore,
        artifacts: dict[str, Artifact],
        engine: Engine,
        cache: GenerationStore,
        scratch: Path,
        progress: Progress,
        resources: ExitStack,
    ) -> None:
        """Look with an open cache; `artifacts` are the finished ones, and `resources` are closed at the end."""
        self.options: ParaphraseOptions = relevant_options(settings.paraphrase)
        self.engine, self.cache, self.scratch = engine, cache, scratch
        self.words = False
        """Whether the run also asks for single words, without which nothing can be judged."""
        self.unjudged = 0
        """Answers that could not be judged for that reason."""
        self.unanswered = 0
        """Requests of step 1 without an answer."""
        self._settings, self._store, self._artifacts = settings, store, artifacts
        self._progress, self._resources = progress, resources

    def prompts(self, block: RequestBlock) -> list[Prompt]:
        """What is asked in each request of a block."""
        request = block.request
        template, seed = prompt_for(self.options, request.step), attempt_seed(request.seed, request.attempt)
        return [Prompt(template.messages(text), text, request.step, seed) for text in block.texts]

    def blocks(self) -> Iterator[RequestBlock]:
        """The requests block by block, those of step 1 first; call it once."""
        if "paraphrase_1" in self._artifacts:
            rows = step_batches(self._store.download(self._artifacts["paraphrase_1"]).path, 2, 1.0)
        else:
            folder = captions_folder(self._settings, self._store, self._artifacts, self.scratch)
            tables, spec = self._tables(1, step_batches(folder, 1, self.options.fraction))
            for block in self._step(tables, spec):
                self.unanswered += len(block.texts)
                yield block
            rows = self._selected(tables, spec)
        yield from self._step(*self._tables(2, rows))

    def _tables(self, step: int, rows: Batches) -> tuple[StepTables, JudgeSpec]:
        spec = judge_spec(self._settings, step, self.engine)
        self.words = self.words or bool(spec.words)
        tables = StepTables(step, self.cache, rows, spec.digest, self.scratch / f"step-{step}")
        return self._resources.enter_context(closing(tables)), spec

    def _step(self, tables: StepTables, spec: JudgeSpec) -> Iterator[RequestBlock]:
        rows: np.ndarray | None = None
        for attempt in range(self.options.attempts):
            yield from self._attempt(tables, spec, attempt, rows)
            rows = tables.rejected()
            if not len(rows):
                break
        for condition in conditions_of(self.options.regenerate):
            for attempt, named in rows_named(tables, condition, spec.max_repeats).items():
                yield from self._attempt(tables, spec, attempt, named)

    def _attempt(
        self, tables: StepTables, spec: JudgeSpec, attempt: int, rows: np.ndarray | None
    ) -> Iterator[RequestBlock]:
        """Ask for the rows with these numbers once more; the requests that this adds to those without an answer."""
        request = step_requests(self.options, tables.step, self.engine.model, attempt)
        before = tables.missing(attempt)
        tables.ask(request, rows)
        self._judge(tables, spec, attempt)
        missing = np.setdiff1d(tables.missing(attempt), before)
        source = source_column(tables.step)
        cursor = RowCursor(tables.batches([source]))
        for start in range(0, len(missing), BLOCK_REQUESTS):
            texts = cursor.take(missing[start : start + BLOCK_REQUESTS]).column(source).to_pylist()
            yield RequestBlock(request, texts)

    def _judge(self, tables: StepTables, spec: JudgeSpec, attempt: int) -> None:
        count = tables.find_unjudged(attempt)
        if not count:
            return
        if spec.words:
            self.unjudged += count
            return
        waiting: list[pa.RecordBatch] = []
        judged = 0
        processes = self._settings.run.judges or self._settings.run.threads
        with closing(JudgePool(spec, processes, self.scratch)) as pool:
            for _, verdicts in pool.judge(tables.unjudged(BLOCK_ROWS), count):
                waiting.append(verdicts)
                judged += verdicts.num_rows
                self._progress(judged, count, phase=f"judging answers of step {tables.step}")
                if sum(batch.num_rows for batch in waiting) >= VERDICTS_A_PART or judged == count:
                    self.cache.append_verdicts(pa.Table.from_batches(waiting))
                    waiting.clear()

    def _selected(self, tables: StepTables, spec: JudgeSpec) -> Batches:
        selection = select(tables, self.options.keep, spec.max_repeats)
        return lambda columns: (rows.select(list(columns)) for rows, _ in selection.batches())
