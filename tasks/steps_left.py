"""What the paraphrase stages of a run still ask: requests that are not cached, their tokens, and what they cost.

Of requests that follow from earlier answers, all are counted, by the joins of the run itself. What follows from answers
to come is the share of rows that the filters are expected to accept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from paraclip.storage.artifacts import Artifact
from paraclip.tasks.missing_rounds import missing_rounds
from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.ingest import IngestedCaptions
from paraclip.tasks.stages.paraphrase import STEPS, step_options
from paraclip_core.captions.filters import count_words
from paraclip_core.paraphrase.engines import PaidEngine
from paraclip_core.paraphrase.keys import step_requests
from paraclip_core.paraphrase.paraphraser import Paraphraser
from paraclip_core.paraphrase.parse import parse_answer
from paraclip_core.paraphrase.rounds import Rounds
from paraclip_core.paraphrase.step_tables import RowCursor, source_column

ACCEPTED = {"capable": 0.95, "off": 1.0}
"""Share of a step's rows that a preset is expected to accept."""
SAMPLE = 1024
"""Texts that are sampled to estimate their length."""
BYTES_PER_TOKEN, MESSAGE_BYTES = 3.9, 20
"""Bytes per token of a prompt's text, and bytes that a chat template adds to each message; measured on the few-shot
prompts. A Chinese character has three bytes and is about one token."""
TOKENS_PER_WORD = 1.15
"""Tokens of an answer per word of its input, measured on the few-shot prompts."""


@dataclass(frozen=True)
class Amount:
    """The work of one stage."""

    rows: int | None = None
    """Rows, images or captions that it would read or has read; None if that is unknown before it runs. Each step reads
    the output of the one before."""
    requests: int | None = None
    """Requests to the language model that are not yet in the answers cache."""
    tokens: int | None = None
    """Tokens of those requests, prompts and longest answers together."""
    units: float | None = None
    """Units of work to which its time is proportional, see :func:`paraclip.tasks.plan.units_of`."""
    spend: float | None = None
    """Cost of the tokens, in the currency of the configured prices; None without prices."""
    note: str = ""
    """Assumptions, and the source of the estimate."""


@dataclass(frozen=True)
class StepLeft:
    """The remaining work of a step, as far as earlier answers determine it."""

    rows: int = 0
    """Rows that it processes."""
    missing: int = 0
    """Distinct requests without an answer, including known further attempts at rejected rows."""
    accepted: int = 0
    """Rows with an accepted answer."""
    rejected: int = 0
    """Rows whose every answer was rejected."""
    new_inputs: int = 0
    """For step 1: inputs that step 2 has not been asked about yet and will be if they pass. These are answers without a
    filter result, as far as a sample shows them to be new, and missing answers."""
    texts: tuple[str, ...] = ()
    """A sample of the texts that it asks about."""

    @property
    def open(self) -> int:
        """Rows whose filter results are unknown."""
        return self.rows - self.accepted - self.rejected


def steps_left(
    run: Run, stage: str, artifacts: Mapping[str, Artifact], captions: IngestedCaptions | None = None
) -> tuple[StepLeft, StepLeft]:
    """The remaining work of both steps of `paraphrase_2` or `queries`; a finished step 1 has none.

    Step 2 of rows without an accepted answer is not included: its requests are unknown.
    """
    left = [StepLeft(), StepLeft()]
    if stage in STEPS and "paraphrase_1" in artifacts:
        handed_on = artifacts["paraphrase_1"].manifest.metrics.get("accepted", 0)
        left[0] = StepLeft(handed_on, accepted=handed_on)
    for rounds in missing_rounds(run, stage, artifacts, captions):
        tables, missing = rounds.tables, [rows for _, rows in rounds.missing]
        counts = sum(map(len, missing)), tables.accepted(), len(tables.rejected())
        new = _new_inputs(rounds) if tables.step == 1 else 0
        texts = _sample(rounds, np.unique(np.concatenate(missing)))
        left[tables.step - 1] = StepLeft(tables.rows, *counts, new, texts)
    return left[0], left[1]


@dataclass(frozen=True)
class Rate:
    """What a step is expected to accept and to cost."""

    share: float
    """Share of rows that are accepted."""
    prompt_tokens: float
    """Prompt tokens per request."""
    completion_tokens: float
    """Tokens of all answers per request."""
    basis: str
    """Where the share comes from."""


def rate_of(run: Run, paraphraser: Paraphraser, step: int, texts: Iterable[str]) -> Rate:
    """The rate of the newest finished step that asked in the same way, or else what is assumed for such texts."""
    stage, now, preset = f"paraphrase_{step}", step_options(paraphraser, step), paraphraser.filters.preset
    for manifest in (artifact.manifest for artifact in reversed(run.store.list(stage))):
        options, metrics = manifest.options, manifest.metrics
        same = all(options.get(name) == now.get(name) for name in ("engine", "model", "prompt", "sampling"))
        if same and options.get("filters", {}).get("preset") == preset and metrics.get("generated"):
            # Step 2 counts paraphrases; a caption may have several.
            share = metrics["accepted" if step == 1 else "kept"] / metrics["captions"]
            prompt, completion = metrics["prompt_tokens"], metrics["completion_tokens"]
            per_request = prompt / metrics["generated"], completion / metrics["generated"]
            return Rate(share, *per_request, f"{share:.0%} accepted as in {stage}/{manifest.fingerprint[:12]}")
    lengths = np.array([(len(text.encode()), count_words(text)) for text in texts] or [(0, 0)]).mean(axis=0)
    size, words = map(float, lengths)
    fixed = sum(len(content.encode()) + MESSAGE_BYTES for _, content in paraphraser.prompts[step].messages(""))
    draws, share = paraphraser.options.sampling.draws, ACCEPTED[preset]
    prompt = (fixed + size) / BYTES_PER_TOKEN * (draws if paraphraser.facts.each_draw else 1)
    return Rate(share, prompt, words * TOKENS_PER_WORD * draws, f"{share:.0%} of {stage} accepted (assumed)")


def asked_amounts(
    run: Run, stage: str, artifacts: Mapping[str, Artifact], captions: IngestedCaptions | None = None
) -> tuple[Amount, Amount, Amount]:
    """Amounts of both steps of `paraphrase_2` or `queries`, and of the paraphrase pairs that they produce."""
    asking = run.stages[stage].paraphraser
    assert asking is not None
    paraphraser, (first, second) = asking(run), steps_left(run, stage, artifacts, captions)
    options = paraphraser.options
    rates = [rate_of(run, paraphraser, step, left.texts or first.texts) for step, left in ((1, first), (2, second))]
    coming, new = round(first.open * rates[0].share), round(first.new_inputs * rates[0].share)
    # The maximum number of paraphrases for each accepted caption.
    paraphrases = min(options.keep, options.sampling.draws)
    second = replace(
        second, rows=second.rows + coming * paraphrases, missing=second.missing + min(coming, new) * paraphrases
    )
    pairs = min(second.accepted + round(second.open * rates[1].share), first.accepted + coming)
    return (
        _amount(paraphraser, first, rates[0], ""),
        _amount(paraphraser, second, rates[1], rates[0].basis if coming else ""),
        Amount(pairs, note=rates[1].basis if second.open else ""),
    )


def _amount(paraphraser: Paraphraser, left: StepLeft, rate: Rate, assumed: str) -> Amount:
    """The work of a step."""
    if not paraphraser.facts.asks:
        return Amount(left.rows, 0, 0, float(left.rows), note=assumed)
    notes = [assumed] if assumed else []
    if paraphraser.options.attempts > 1 and left.missing and paraphraser.filters.preset != "off":
        # How often a missing answer will lead to another request is unknown.
        notes.append(f"requests after a rejected answer (attempts={paraphraser.options.attempts}) come on top")
    prompt, completion = left.missing * rate.prompt_tokens, left.missing * rate.completion_tokens
    engine = paraphraser.engine()
    spend = round(engine.cost(prompt, completion), 4) if isinstance(engine, PaidEngine) and engine.priced else None
    tokens = round(prompt + completion)
    return Amount(left.rows, left.missing, tokens, float(left.missing), spend, "; ".join(notes))


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
    keys = [{request.key(text) for text in map(parse_answer, answers) if text} for answers in completions]
    cached = tables.cache.lookup(pa.array(set().union(*keys), pa.binary(16)))
    asked = set(cached.column("key").to_pylist())
    # Which of its answers comes first is up to the filters.
    new = sum(bool(of_row) and asked.isdisjoint(of_row) for of_row in keys)
    return count + round(unfiltered * new / block.num_rows)


def _sample(rounds: Rounds, rows: np.ndarray) -> tuple[str, ...]:
    """Texts of some of these rows, evenly spread."""
    chosen = rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE]
    if not len(chosen):
        return ()
    source = source_column(rounds.tables.step)
    return tuple(RowCursor(rounds.tables.batches([source])).take(chosen).column(source).to_pylist())
