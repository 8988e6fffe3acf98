"""A trial of a few captions on both steps, which shows everything that a run would do to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from paraclip.storage.answers import AnswerStore
from paraclip.storage.artifacts import ArtifactStore
from paraclip.storage.roots import open_answers
from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.paraphrase import charge, filter_spec, held_batches, rows_of_texts, spent, step_rounds
from paraclip_core.captions.clean import clean
from paraclip_core.captions.filters import cleaned
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.facts import Facts, facts_behind
from paraclip_core.paraphrase.filter_pool import FilterPool
from paraclip_core.paraphrase.filtering import Candidate
from paraclip_core.paraphrase.filters import filters_of
from paraclip_core.paraphrase.parse import parse_answer
from paraclip_core.paraphrase.rounds import Rounds, both_steps
from paraclip_core.paraphrase.sending import Counts
from paraclip_core.paraphrase.step_tables import Batches
from paraclip_core.tables import FILTER_RESULTS, GENERATIONS

Say = Callable[[str], None]


@dataclass(frozen=True)
class TriedAnswer:
    """An answer, raw and parsed."""

    raw: str
    parsed: str


@dataclass(frozen=True)
class TriedCandidate:
    """A parsed text with each filter's result, as in `Candidate`."""

    answer: str
    results: Mapping[str, str | None]
    similarity: float | None
    accepted: bool
    words_swapped: bool
    """Whether it is an answer with swapped words instead of the engine's own."""


@dataclass(frozen=True)
class Attempt:
    """A request and its outcome."""

    step: int
    attempt: int
    input: str
    key: str
    cached: bool
    answers: list[TriedAnswer]
    candidates: list[TriedCandidate]
    """Each parsed text once, followed by those with swapped words."""
    chosen: list[str]
    """The accepted texts that are kept, best first."""
    reason: str | None
    """Code of the filter that stopped the best candidate, None if one was chosen."""
    detail: str


Attempts = Mapping[tuple[str, str], Sequence[Attempt]]
"""(caption, text of the request) → its attempts."""


@dataclass(frozen=True)
class Paraphrase:
    """A paraphrase pair of a caption, as training would see it."""

    paraphrase_1: str
    paraphrase_2: str | None
    """None if no answer of step 2 is accepted."""


@dataclass(frozen=True)
class TriedCaption:
    """A caption with its requests."""

    caption: str
    """The caption as ingest cleans it."""
    left_out: str
    """Why ingest would reject it, so that it is not tried; empty if it would not."""
    attempts: list[Attempt]
    """Attempts of both steps."""
    paraphrases: list[Paraphrase]


@dataclass(frozen=True)
class Trial:
    """Captions with their requests."""

    engine: str
    model: str
    preset: str
    filters: tuple[str, ...]
    """The filters that ran, in order."""
    captions: list[TriedCaption]
    facts: Facts | None
    """The facts that the paraphrases keep; None if there are none, or without the encoder that tells."""
    asked: int
    """Requests that the engine answered in this trial, those for single words included."""
    cached: int
    """Requests that the root's answers cache had answered."""
    prompt_tokens: int
    completion_tokens: int
    spend: float | None
    """Cost of these tokens; None without prices."""
    stored: bool
    """Whether the answers were added to the root's answers cache."""


class TrialCache:
    """Answers from the root's cache and new ones; filter results are recomputed and live as long as this object."""

    def __init__(self, root: AnswerStore, keep: bool) -> None:
        """`keep`: also store answers in the root's cache."""
        self._root, self._keep = root, keep
        self._generations, self._filter_results = GENERATIONS.empty_table(), FILTER_RESULTS.empty_table()

    @property
    def new(self) -> set[bytes]:
        """Keys of the requests sent in this trial."""
        return set(self._generations.column("key").to_pylist())

    @contextmanager
    def attached(self, con: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Attach the answers to the connection's `requests`, and all filter results, as tables of `cache`."""
        keys = con.sql("SELECT DISTINCT key FROM requests").to_arrow_table().column("key").cast(pa.binary(16))
        con.execute("ATTACH ':memory:' AS cache")
        try:
            for name, rows in (("generations", self.lookup(keys)), ("filter_results", self._filter_results)):
                con.register("rows", rows)
                con.execute(f"CREATE TABLE cache.{name} AS FROM rows")
                con.unregister("rows")
            yield
        finally:
            con.execute("DETACH cache")

    def lookup(self, keys: pa.FixedSizeBinaryArray | pa.ChunkedArray) -> pa.Table:
        """Columns `key` and `completions` of the known ones among `keys`, each once."""
        with duckdb.connect() as con:
            for name, rows in (("asked", pa.table({"key": keys})), ("own", self._generations)):
                con.register(name, rows)
            con.register("root", self._root.lookup(keys))
            query = (
                "SELECT key, completions FROM own SEMI JOIN asked USING (key) UNION SELECT key, completions FROM root"
            )
            return con.sql(query).to_arrow_table()

    def append(self, generations: pa.Table) -> None:
        if self._keep:
            self._root.append(generations)
        self._generations = pa.concat_tables([self._generations, generations])

    def append_filter_results(self, filter_results: pa.Table) -> None:
        self._filter_results = pa.concat_tables([self._filter_results, filter_results])


def try_captions(run: Run, captions: Sequence[str], keep: bool, say: Say) -> Trial:
    """Request and filter as a run would, but ignore `paraphrase.fraction`.

    With `keep`, answers are stored in the root's cache; otherwise nothing is stored.
    `say` is called with a line before each slow part.
    """
    with ExitStack() as stack:
        # No root is created if nothing is stored. An object store may have answers that this machine has never seen.
        bare = not keep and run.store.remote is None and not run.store.root.exists()
        store = ArtifactStore(stack.enter_context(TempDir("trial-root-"))) if bare else run.store
        run = Run(run.settings, store)
        engine = run.paraphraser.engine()
        stack.enter_context(closing(engine))
        root = stack.enter_context(closing(open_answers(run.store)))
        charge(engine, root)
        cache, scratch, filtered = TrialCache(root, keep), stack.enter_context(TempDir("trial-")), Explained()
        texts = [clean(caption) for caption in captions]
        left_out = [": ".join(cleaned(caption, run.settings.data)[1] or ()) for caption in captions]
        asked = list(dict.fromkeys(text for text, why in zip(texts, left_out, strict=True) if not why))

        def rounds_of(step: int, batches: Batches) -> AbstractContextManager[Rounds]:
            say(f"step {step}: {sum(batch.num_rows for batch in batches(['caption']))} texts, with {engine.name}")
            return step_rounds(run, run.paraphraser, step, batches, cache, scratch, engine, on_filtered=explain)

        def explain(pool: FilterPool, block: pa.RecordBatch, results: pa.RecordBatch) -> None:
            filtered.extend(zip(block.to_pylist(), results.to_pylist(), pool.explain(block), strict=True))

        attempts, counts = dict[int, Attempts](), Counts()
        for rounds in both_steps(rounds_of, held_batches([rows_of_texts(asked)])):
            attempts[rounds.tables.step] = _attempts(rounds, cache.new, filtered)
            filtered.clear()
            for name in ("generated", "cached", "prompt_tokens", "completion_tokens"):
                setattr(counts, name, getattr(counts, name) + getattr(rounds.counts, name))
        filters = filters_of(filter_spec(run.paraphraser, 2).filters)
        tried = [_caption(text, why, attempts) for text, why in zip(texts, left_out, strict=True)]
        return Trial(
            engine.name,
            engine.model,
            run.paraphraser.filters.preset,
            (*filters.text, *filters.meaning),
            tried,
            facts_behind(run.paraphraser.filters, _pairs(tried)),
            counts.generated,
            counts.cached,
            counts.prompt_tokens,
            counts.completion_tokens,
            spent(engine, counts).get("spend"),
            keep,
        )


Explained = list[tuple[dict[str, Any], dict[str, Any], list[Candidate]]]
"""Rows of `tables.ANSWERS`, each with its row of `tables.FILTER_RESULTS` and its candidates."""


def _attempts(rounds: Rounds, new: set[bytes], filtered: Explained) -> Attempts:
    """The attempts; `new` are the keys of the requests sent in this trial."""
    numbers = dict(rounds.tables.con.execute("SELECT key, min(attempt) FROM requests GROUP BY key").fetchall())
    attempts: dict[tuple[str, str], list[Attempt]] = {}
    for asked, result, candidates in filtered:
        key, parsed = asked["generation"], list(map(parse_answer, asked["completions"]))
        attempt = Attempt(
            step=rounds.tables.step,
            attempt=numbers[key],
            input=asked["source"],
            key=key.hex(),
            cached=key not in new,
            answers=list(map(TriedAnswer, asked["completions"], parsed)),
            candidates=[
                TriedCandidate(
                    tried.answer, tried.results, tried.similarity, tried.accepted, tried.answer not in parsed
                )
                for tried in candidates
            ],
            chosen=[accepted["answer"] for accepted in result["accepted"][: rounds.keep]],
            reason=result["reason"],
            detail=result["detail"] or "",
        )
        attempts.setdefault((asked["caption"], asked["source"]), []).append(attempt)
    return attempts


def _pairs(captions: Sequence[TriedCaption]) -> list[tuple[str, str]]:
    """Each caption with each paraphrase of either step."""
    return [
        (tried.caption, answer)
        for tried in captions
        for paraphrase in tried.paraphrases
        for answer in (paraphrase.paraphrase_1, paraphrase.paraphrase_2)
        if answer is not None
    ]


def _caption(text: str, left_out: str, steps: Mapping[int, Attempts]) -> TriedCaption:
    attempts, paraphrases = list(steps.get(1, {}).get((text, text), ())), list[Paraphrase]()
    for answer in attempts[-1].chosen if attempts else ():
        further = steps[2][text, answer]
        attempts += further
        paraphrases.append(Paraphrase(answer, next(iter(further[-1].chosen), None)))
    return TriedCaption(text, left_out, attempts, paraphrases)
