"""What a paraphrase step has left to ask: its requests, less what the generation cache holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from paraclip_core.config import Settings
from paraclip_core.paraphrase.conditions import conditions_of
from paraclip_core.paraphrase.engines import make_engine, relevant_options
from paraclip_core.paraphrase.parse import parse_answer
from paraclip_core.paraphrase.prompts import PromptTemplate, bare, prompt_for
from paraclip_core.paraphrase.protocol import GenerationCache
from paraclip_core.paraphrase.requests import Batches, RequestKeys, RowCursor, source_column, step_requests
from paraclip_core.paraphrase.rounds import rows_named, word_requests
from paraclip_core.paraphrase.select import select
from paraclip_core.paraphrase.small_model.synonyms import swappable
from paraclip_core.paraphrase.step_tables import StepTables
from paraclip_core.tables import CAPTIONS
from storage.artifacts import Artifact, ArtifactStore
from storage.parquet import PartWriter
from storage.roots import open_generations
from tasks.models import model_hashes
from tasks.stages.ingest import scan
from tasks.stages.paraphrase import judge_spec, step_batches

__all__ = ["StepLeft", "captions_folder", "step_left", "steps_left"]

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


def steps_left(settings: Settings, store: ArtifactStore, artifacts: dict[str, Artifact]) -> dict[int, StepLeft]:
    """What each step has left that is not finished, from finished artifacts or else from the sources.

    Step 2 of rows that have no accepted answer yet is not in it: what it asks is not known.

    Raises:
        InputError: a source file is missing or bad as a whole.
    """
    left: dict[int, StepLeft] = {}
    with _looking(settings, store) as look:
        if "paraphrase_1" in artifacts:
            return {2: look.step(2, step_batches(store.download(artifacts["paraphrase_1"]).path, 2, 1.0))[0]}
        folder = captions_folder(settings, store, artifacts, look.scratch)
        captions = step_batches(folder, 1, settings.paraphrase.fraction)
        left[1], tables = look.step(1, captions)
        left[1] = replace(left[1], new_inputs=look.new_inputs(tables))
        left[2] = look.step(2, look.selected(tables))[0]
    return left


def step_left(settings: Settings, store: ArtifactStore, step: int, upstream: Artifact) -> StepLeft:
    """What a step has left whose input is finished."""
    with _looking(settings, store) as look:
        return look.step(step, step_batches(upstream.path, step, settings.paraphrase.fraction))[0]


@contextmanager
def _looking(settings: Settings, store: ArtifactStore) -> Iterator[_Look]:
    cache = open_generations(store)
    with TemporaryDirectory(prefix="paraclip-plan-") as scratch:
        look = _Look(settings, cache, Path(scratch))
        try:
            yield look
        finally:
            look.close()
            cache.close()


class _Look:
    """Counts what steps have left."""

    def __init__(self, settings: Settings, cache: GenerationCache, scratch: Path) -> None:
        self.scratch = scratch
        self._settings, self._cache = settings, cache
        self._options = relevant_options(settings.paraphrase)
        self._engine = make_engine(self._options, settings.data.root, hash_files=model_hashes(settings))
        self._tables: list[StepTables] = []

    def close(self) -> None:
        """Close engine and tables."""
        for tables in self._tables:
            tables.close()
        self._engine.close()

    def step(self, step: int, batches: Batches) -> tuple[StepLeft, StepTables]:
        """What a step over these rows has left, and its tables."""
        options, spec = self._options, judge_spec(self._settings, step, self._engine)
        tables = StepTables(step, self._cache, batches, spec.digest, self.scratch / f"step-{step}")
        self._tables.append(tables)
        rows: np.ndarray | None = None
        missing: list[np.ndarray] = []
        for attempt in range(options.attempts):
            tables.ask(step_requests(options, step, self._engine.model, attempt), rows)
            missing.append(tables.missing(attempt))
            rows = tables.rejected()
            if not len(rows):
                break
        assert rows is not None
        first = len(missing[0])
        missing += self._named(tables)
        accepted = tables.accepted()
        texts = _sample(batches, step, np.unique(np.concatenate(missing)))
        prompt, answers = _tokens(prompt_for(options, step), texts, options.sampling.n)
        words = _words(texts, first, word_requests(options, self._engine.model), self._cache) if spec.words else 0
        left = StepLeft(tables.rows, sum(map(len, missing)), accepted, len(rows), prompt, answers, words)
        return left, tables

    def selected(self, tables: StepTables) -> Batches:
        """Step 2's rows, as far as step 1's answers are known."""
        max_repeats = judge_spec(self._settings, 1, self._engine).max_repeats
        selection = select(tables, self._options.keep, max_repeats)
        return lambda columns: (kept.select(list(columns)) for kept, _ in selection.batches())

    def new_inputs(self, tables: StepTables) -> int:
        """What step 2 was not asked about yet and will be if it passes, see :class:`StepLeft`."""
        count = len(tables.missing(0))
        unjudged = tables.find_unjudged(0)
        with closing(tables.unjudged(SAMPLE)) as blocks:
            block = next(blocks, None)
        if block is None:
            return count
        request = step_requests(self._options, 2, self._engine.model)
        completions = block.column("completions").to_pylist()
        keys = [[request.key(text) for text in map(parse_answer, answers) if text] for answers in completions]
        known = self._cache.lookup(pa.array({key for some in keys for key in some}, pa.binary(16)))
        asked = set(known.column("key").to_pylist())
        # Which of its answers comes first is for the gates to say.
        new = sum(bool(some) and asked.isdisjoint(some) for some in keys)
        return count + round(unjudged * new / block.num_rows)

    def _named(self, tables: StepTables) -> list[np.ndarray]:
        """Rows that `paraphrase.regenerate` asks for, as far as their answers are known."""
        max_repeats = judge_spec(self._settings, tables.step, self._engine).max_repeats
        missing: list[np.ndarray] = []
        for condition in conditions_of(self._options.regenerate):
            for attempt, rows in rows_named(tables, condition, max_repeats).items():
                before = tables.missing(attempt)
                tables.ask(step_requests(self._options, tables.step, self._engine.model, attempt), rows)
                missing.append(np.setdiff1d(tables.missing(attempt), before))
        return missing


def captions_folder(settings: Settings, store: ArtifactStore, artifacts: Mapping[str, Artifact], scratch: Path) -> Path:
    """The folder of the finished ingest, or else one below `scratch` with the captions that it will accept.

    Raises:
        InputError: a source file is missing or bad as a whole.
    """
    if "ingest" in artifacts:
        return store.download(artifacts["ingest"]).path
    writer = PartWriter(scratch / "ingest" / "captions", CAPTIONS)
    for batch in scan(settings, store):
        writer.write(batch)
    writer.close()
    return scratch / "ingest"


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
