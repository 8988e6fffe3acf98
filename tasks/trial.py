"""A trial of a few captions on both steps; the cache keeps the answers as those of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.paraphrase import held_batches, paraphrasing, rows_of_texts, step_metrics, summed_metrics
from paraclip_core.captions.clean import clean
from paraclip_core.captions.filters import cleaned
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.facts import Facts, facts_behind
from paraclip_core.paraphrase.keys import KEY_BYTES
from paraclip_core.paraphrase.parse import parse_answer
from paraclip_core.paraphrase.rounds import Rounds, both_steps
from paraclip_core.progress import Progress
from paraclip_core.tables import PARAPHRASE_REJECTS, PARAPHRASES, text_hash


@dataclass(frozen=True)
class Attempt:
    """A request and its outcome."""

    step: int
    input: str
    answers: list[dict[str, str]]
    """Each answer, `raw` and `parsed`."""
    kept: list[str]
    """The accepted texts that are kept, best first."""
    reason: str | None = None
    """Code of the filter that stopped the best answer, None if one is kept."""
    detail: str = ""


@dataclass(frozen=True)
class TriedCaption:
    """A caption with its requests."""

    caption: str
    """The caption as ingest cleans it."""
    left_out: str
    """Why ingest would reject it, so that it is not tried; empty if it would not."""
    attempts: list[Attempt]
    """Attempts of both steps."""

    @property
    def pairs(self) -> list[tuple[str, str | None]]:
        """Its paraphrases, as training would see them; the second is None if no answer of step 2 is accepted."""
        second = {attempt.input: attempt.kept[0] for attempt in self.attempts if attempt.step == 2 and attempt.kept}
        return [(text, second.get(text)) for attempt in self.attempts if attempt.step == 1 for text in attempt.kept]


@dataclass(frozen=True)
class Trial:
    """Captions with their requests."""

    captions: list[TriedCaption]
    facts: Facts | None
    """The facts that the paraphrases keep; None if there are none, or without the encoder that tells."""
    metrics: Mapping[str, Any]
    """Metrics of both steps, as in a stage's manifest; empty if no caption is tried."""


def try_captions(run: Run, captions: Sequence[str], progress: Progress) -> Trial:
    """Request and filter as a run would, but ignore `paraphrase.fraction`."""
    attempts, metrics = dict[bytes, list[Attempt]](), dict[str, Any]()
    tried = list[TriedCaption]()
    for caption in captions:
        text, why = clean(caption), cleaned(caption, run.settings.data)[1]
        tried.append(TriedCaption(text, ": ".join(why or ()), attempts.setdefault(text_hash(text), [])))
    asked = list(dict.fromkeys(one.caption for one in tried if not one.left_out))
    with TempDir("trial-") as scratch:
        rounds_of = partial(paraphrasing, run, run.paraphraser, text_hash(*asked).hex(), scratch, progress)
        for rounds in both_steps(rounds_of, held_batches([rows_of_texts(asked)])):
            for caption_id, attempt in _attempts(rounds):
                attempts[caption_id].append(attempt)
            metrics = summed_metrics(metrics, step_metrics(run.paraphraser, rounds))
    pairs = [(one.caption, text) for one in tried for pair in one.pairs for text in pair if text is not None]
    return Trial(tried, facts_behind(run.paraphraser.filters, pairs), metrics)


def _attempts(rounds: Rounds) -> Iterator[tuple[bytes, Attempt]]:
    """The outcome of each request of a step, with its caption's id."""
    step, selection = rounds.tables.step, rounds.selection
    rejects = pa.Table.from_batches(selection.rejects(), PARAPHRASE_REJECTS).to_pylist()
    rows = pa.Table.from_batches(selection.rows(), PARAPHRASES).to_pylist()
    keys = {row["generation"] for row in rejects} | {row[f"generation_{step}"] for row in rows}
    cached = rounds.tables.cache.lookup(pa.array(keys, pa.binary(KEY_BYTES))).to_pylist()
    answers = {row["key"]: [{"raw": raw, "parsed": parse_answer(raw)} for raw in row["completions"]] for row in cached}
    for row in rejects:
        outcome = [], row["reason"], row["detail"]
        yield row["caption_id"], Attempt(step, row["input"], answers[row["generation"]], *outcome)
    kept = dict[tuple[bytes, str, bytes], list[str]]()
    for row in rows:
        request = row["caption_id"], row[rounds.tables.source], row[f"generation_{step}"]
        kept.setdefault(request, []).append(row[f"paraphrase_{step}"])
    for (caption_id, text, key), texts in kept.items():
        yield caption_id, Attempt(step, text, answers[key], texts)
