"""What the paraphrase steps of a run still have to request or look up, for `plan`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, groupby, islice
from operator import itemgetter

import numpy as np
import pyarrow as pa

from paraclip.storage.artifacts import Artifact
from paraclip.tasks.missing_rounds import missing_query_rounds, missing_rounds
from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.ingest import IngestedCaptions
from paraclip.tasks.stages.paraphrase import step_batches
from paraclip_core.captions.filters import count_words
from paraclip_core.paraphrase.keys import step_requests
from paraclip_core.paraphrase.parse import parse_answer
from paraclip_core.paraphrase.prompts import PromptTemplate, prompt_for
from paraclip_core.paraphrase.rounds import Rounds
from paraclip_core.paraphrase.sending import prompts_of
from paraclip_core.paraphrase.step_tables import RowCursor, source_column

SAMPLE = 1024
"""Missing texts that are sampled to estimate their length."""
BYTES_PER_TOKEN, MESSAGE_BYTES = 3.9, 20
"""Bytes per token of a prompt's text, and bytes that a chat template adds to each message; measured on the few-shot
prompts. A Chinese character has three bytes and is about one token."""
TOKENS_PER_WORD = 1.15
"""Tokens of an answer per word of its input, measured on the few-shot prompts."""
BLOCK_CAPTIONS = 10_000
"""Captions that are looked up at once."""


@dataclass(frozen=True)
class StepLeft:
    """The remaining work of a step."""

    rows: int
    """Rows that it processes."""
    missing: int = 0
    """Distinct requests without an answer, including known further attempts at rejected rows."""
    accepted: int = 0
    """Rows with an accepted answer."""
    rejected: int = 0
    """Rows whose every answer was rejected."""
    prompt_tokens: float = 0.0
    """Prompt tokens per request, examples included; estimated."""
    completion_tokens: float = 0.0
    """Tokens of all answers per request; estimated."""
    new_inputs: int = 0
    """For step 1: inputs that step 2 has not been asked about yet and will be if they pass. These are answers without a
    filter result, as far as a sample shows them to be new, and missing answers."""


def steps_left(
    run: Run, artifacts: Mapping[str, Artifact], captions: IngestedCaptions | None = None
) -> dict[int, StepLeft]:
    """The remaining work of each unfinished step of training captions.

    Step 2 of rows without an accepted answer is not included: its requests are unknown.
    """
    return _left(missing_rounds(run, artifacts, captions))


def queries_left(
    run: Run, artifacts: Mapping[str, Artifact], captions: IngestedCaptions | None = None
) -> dict[int, StepLeft]:
    """The same for both steps of held-out queries; empty if they are finished, or if the run has none."""
    return _left(missing_query_rounds(run, artifacts, captions))


def _left(steps: Iterable[Rounds]) -> dict[int, StepLeft]:
    left = {}
    for rounds in steps:
        tables, options = rounds.tables, rounds.options
        missing = [rows for _, rows in rounds.missing]
        texts = _sample(rounds, np.unique(np.concatenate(missing)))
        prompt, answer = _tokens(prompt_for(options, tables.step), texts)
        draws = options.sampling.draws
        # A server that refuses `n` is sent the prompt for each draw.
        tokens = prompt * (draws if "n" in options.openai.extra_body else 1), answer * draws
        counts = sum(map(len, missing)), tables.accepted(), len(tables.rejected())
        new = _new_inputs(rounds) if tables.step == 1 else 0
        left[tables.step] = StepLeft(tables.rows, *counts, *tokens, new)
    return left


@dataclass(frozen=True)
class LookedUp:
    """What an engine that calls no language model has, before filtering."""

    captions: int
    """Captions, or those that a finished step 1 passes on."""
    paraphrases: int
    """Answers to them, the input of step 2."""
    pairs: int
    """Captions with an answer of both steps."""


def look_up(run: Run, artifacts: Mapping[str, Artifact], captions: IngestedCaptions) -> LookedUp:
    """Look up what an engine that calls no language model has for the captions of a run with an unfinished step 2."""
    options, counts = run.paraphraser.options, Counter[str]()
    with closing(run.paraphraser.engine()) as engine:

        def answers(step: int, texts: Sequence[str], most: int) -> Iterator[list[str]]:
            request = step_requests(options, step, engine.model)
            prompts = prompts_of(request, run.paraphraser.prompts[step], texts)
            for completion in engine.generate(prompts, options.sampling):
                yield list(filter(None, map(parse_answer, completion.texts)))[:most]

        def paraphrases() -> Iterator[list[str]]:
            if "paraphrase_1" in artifacts:
                batches = step_batches(run.store.download(artifacts["paraphrase_1"]).path, 2, 1.0)
                rows = chain.from_iterable(batch.to_pylist() for batch in batches(["caption_id", "paraphrase_1"]))
                for _, group in groupby(rows, key=itemgetter("caption_id")):
                    yield [row["paraphrase_1"] for row in group]
                return
            for batch in step_batches(captions.folder, 1, options.fraction)(["caption"]):
                yield from answers(1, batch.column("caption").to_pylist(), options.keep)

        captions_left = paraphrases()
        while block := list(islice(captions_left, BLOCK_CAPTIONS)):
            seconds = answers(2, list(chain.from_iterable(block)), 1)
            both = [[second for second in islice(seconds, len(group)) if second] for group in block]
            counts.update(captions=len(block), paraphrases=sum(map(len, block)), pairs=sum(map(bool, both)))
    return LookedUp(counts["captions"], counts["paraphrases"], counts["pairs"])


def _new_inputs(rounds: Rounds) -> int:
    """Number of new inputs of step 2, see :class:`StepLeft`."""
    tables = rounds.tables
    count, unfiltered = len(tables.missing(0)), tables.find_unfiltered(0)
    with closing(tables.unfiltered(SAMPLE)) as blocks:
        block = next(blocks, None)
    if block is None:
        return count
    request = step_requests(rounds.options, 2, rounds.request.model)
    completions = block.column("completions").to_pylist()
    keys = [[request.key(text) for text in map(parse_answer, answers) if text] for answers in completions]
    cached = rounds.cache.lookup(pa.array({key for some in keys for key in some}, pa.binary(16)))
    asked = set(cached.column("key").to_pylist())
    # Which of its answers comes first is up to the filters.
    new = sum(bool(some) and asked.isdisjoint(some) for some in keys)
    return count + round(unfiltered * new / block.num_rows)


def _sample(rounds: Rounds, rows: np.ndarray) -> list[str]:
    """Texts of some of these rows, evenly spread."""
    chosen = rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE]
    if not len(chosen):
        return []
    source = source_column(rounds.tables.step)
    return RowCursor(rounds.tables.batches([source])).take(chosen).column(source).to_pylist()


def _tokens(prompt: PromptTemplate, texts: Iterable[str]) -> tuple[float, float]:
    """Tokens of a request and of one answer, estimated from the length of the texts."""
    lengths = [(len(text.encode()), count_words(text)) for text in texts]
    count = max(len(lengths), 1)
    size, words = (sum(column) / count for column in zip(*lengths, strict=True)) if lengths else (0.0, 0.0)
    fixed = sum(len(content.encode()) + MESSAGE_BYTES for _, content in prompt.messages(""))
    return (fixed + size) / BYTES_PER_TOKEN, words * TOKENS_PER_WORD
