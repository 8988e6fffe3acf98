"""Requests of the paraphrase steps without an answer: the same rounds as a run's, with nobody asked."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from paraclip.storage.artifacts import Artifact
from paraclip.storage.roots import open_answers
from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.ingest import IngestedCaptions, ingested_captions
from paraclip.tasks.stages.paraphrase import step_batches, step_rounds
from paraclip_core.demo.synonyms import swappable
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.parse import parse_answer
from paraclip_core.paraphrase.prompts import PromptTemplate, bare, prompt_for
from paraclip_core.paraphrase.requests import GenerationCache, RequestKeys, RowCursor, source_column, step_requests
from paraclip_core.paraphrase.rounds import Rounds, word_requests
from paraclip_core.progress import Progress, silent

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


def missing_rounds(
    run: Run,
    artifacts: Mapping[str, Artifact],
    captions: IngestedCaptions | None = None,
    judged: bool = False,
    progress: Progress = silent,
) -> Generator[Rounds, None, None]:
    """The rounds of each step that is not finished, as far as earlier answers say what they would ask.

    Step 2 asks about the accepted answers of step 1, and a further attempt about what was rejected. So answers without
    a verdict are judged first where `judged` says so, and left out elsewhere.
    """
    with TempDir("requests-") as scratch, closing(open_answers(run.store)) as cache, ExitStack() as stack:
        if "paraphrase_1" in artifacts:
            rows = step_batches(run.store.download(artifacts["paraphrase_1"]).path, 2, 1.0)
        else:
            captions = captions or ingested_captions(run, artifacts, scratch)
            texts = step_batches(captions.folder, 1, run.paraphraser.options.fraction)
            first = step_rounds(stack, run, 1, texts, cache, scratch / "step-1", judged=judged)
            first.progress = progress
            first.run()
            yield first
            selection = first.select()
            rows = lambda columns: (rows.select(list(columns)) for rows, _ in selection.batches())  # noqa: E731 (as step_batches)
        second = step_rounds(stack, run, 2, rows, cache, scratch / "step-2", judged=judged)
        second.progress = progress
        second.run()
        yield second


def steps_left(
    run: Run, artifacts: Mapping[str, Artifact], captions: IngestedCaptions | None = None
) -> dict[int, StepLeft]:
    """What each step has left that is not finished.

    Step 2 of rows that have no accepted answer yet is not in it: what it asks is not known.
    """
    left = {}
    for rounds in missing_rounds(run, artifacts, captions):
        step = rounds.tables.step
        left[step] = _left(run, rounds)
        if step == 1:
            left[1] = replace(left[1], new_inputs=_new_inputs(run, rounds))
    return left


def step_left(run: Run, step: int, upstream: Artifact) -> StepLeft:
    """What a step has left whose input is finished."""
    batches = step_batches(upstream.path, step, run.paraphraser.options.fraction)
    with TempDir("requests-") as scratch, closing(open_answers(run.store)) as cache, ExitStack() as stack:
        rounds = step_rounds(stack, run, step, batches, cache, scratch, judged=False)
        rounds.run()
        return _left(run, rounds)


def _left(run: Run, rounds: Rounds) -> StepLeft:
    tables, options = rounds.tables, run.paraphraser.options
    missing = [rows for _, rows in rounds.missing]
    texts = _sample(rounds, np.unique(np.concatenate(missing)))
    prompt, answers = _tokens(prompt_for(options, tables.step), texts, options.sampling.n)
    words = 0
    if run.paraphraser.asks_words(tables.step):
        words = _words(texts, len(missing[0]), word_requests(options, run.paraphraser.model), rounds.cache)
    return StepLeft(
        tables.rows, sum(map(len, missing)), tables.accepted(), len(tables.rejected()), prompt, answers, words
    )


def _new_inputs(run: Run, rounds: Rounds) -> int:
    """What step 2 was not asked about yet and will be if it passes, see :class:`StepLeft`."""
    tables = rounds.tables
    count, unjudged = len(tables.missing(0)), tables.find_unjudged(0)
    with closing(tables.unjudged(SAMPLE)) as blocks:
        block = next(blocks, None)
    if block is None:
        return count
    request = step_requests(run.paraphraser.options, 2, run.paraphraser.model)
    completions = block.column("completions").to_pylist()
    keys = [[request.key(text) for text in map(parse_answer, answers) if text] for answers in completions]
    cached = rounds.cache.lookup(pa.array({key for some in keys for key in some}, pa.binary(16)))
    asked = set(cached.column("key").to_pylist())
    # Which of its answers comes first is for the gates to say.
    new = sum(bool(some) and asked.isdisjoint(some) for some in keys)
    return count + round(unjudged * new / block.num_rows)


def _sample(rounds: Rounds, rows: np.ndarray) -> list[str]:
    """Texts of some of these rows, spread over all of them."""
    chosen = rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE]
    if not len(chosen):
        return []
    source = source_column(rounds.tables.step)
    return RowCursor(rounds.tables.batches([source])).take(chosen).column(source).to_pylist()


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
