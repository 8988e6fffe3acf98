"""Query expansion: asks a run's engine for paraphrases of queries, and embeds each query as the mean with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paraclip.storage.parquet import write_table
from paraclip.tasks.models import find_release
from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.paraphrase import held_batches, paraphrasing, rows_of_texts, step_metrics, summed_metrics
from paraclip_core.captions.clean import clean
from paraclip_core.captions.filters import MOST_CHARACTERS
from paraclip_core.clip.expansion import mean_features
from paraclip_core.lifetime import TempDir
from paraclip_core.paraphrase.filters import filters_of
from paraclip_core.paraphrase.paraphraser import Paraphraser
from paraclip_core.paraphrase.rounds import both_steps
from paraclip_core.paraphrase.selection import Selection
from paraclip_core.paraphrase.sentence_encoder import check_encoder
from paraclip_core.paraphrase.step_tables import Batches
from paraclip_core.paraphrase.words import words
from paraclip_core.progress import Progress, silent
from paraclip_core.tables import HEADS, HEADS_MODEL, text_hash


@dataclass(frozen=True)
class Expansion:
    """Queries with their paraphrases, and what it took to get them."""

    queries: Sequence[str]
    """As the user wrote them."""
    paraphrases: Sequence[Sequence[str]]
    """The accepted paraphrases of each query, those of step 1 first; empty if none was accepted."""
    metrics: Mapping[str, Any]
    """Metrics of both steps, as in a stage's manifest; empty if nothing was to be asked."""

    @property
    def groups(self) -> list[list[str]]:
        """Each query with its paraphrases."""
        return [[query, *texts] for query, texts in zip(self.queries, self.paraphrases, strict=True)]

    def facts(self) -> dict[str, Any]:
        """Counts and costs; `spend` is None without prices."""
        found = list(map(len, self.paraphrases))
        return {
            "queries": len(found),
            "expanded": sum(map(bool, found)),
            "without_paraphrases": found.count(0),
            "paraphrases": sum(found),
            "asked": self.metrics.get("generated", 0),
            "cached": self.metrics.get("cached", 0),
            "prompt_tokens": self.metrics.get("prompt_tokens", 0),
            "completion_tokens": self.metrics.get("completion_tokens", 0),
            "spend": self.metrics.get("spend"),
        }


def paraphrase_queries(run: Run, queries: Sequence[str], most: int, progress: Progress = silent) -> Expansion:
    """Ask for up to `most` paraphrases of each query, by the run's engine, prompts, filters and spending cap.

    Step 1 gives as many of its answers as are accepted; step 2 paraphrases these for the queries that need more. A
    query that is empty after cleaning or longer than a caption may be is not asked about.
    """
    paraphraser = Paraphraser(run.settings.paraphrase.model_copy(update={"keep": most}), run.paraphraser.context)
    if filters_of(paraphraser.filters).meaning:
        check_encoder(paraphraser.filters.encoder)
    texts = ["" if len(query) > MOST_CHARACTERS else clean(query) for query in queries]
    found: dict[str, list[str]] = {text: [] for text in texts if text}
    same_queries, metrics = text_hash(*sorted(found)).hex(), dict[str, Any]()
    with TempDir("expand-") as scratch:
        rounds_of = partial(paraphrasing, run, paraphraser, same_queries, scratch, progress)

        def hand_on(selection: Selection) -> Batches:
            return held_batches(_needed(selection.rows(), found, most))

        for rounds in both_steps(rounds_of, held_batches([rows_of_texts(list(found))]), hand_on=hand_on):
            _add(found, rounds.selection.rows(), rounds.tables.step, most)
            metrics = summed_metrics(metrics, step_metrics(paraphraser, rounds))
    return Expansion(queries, [found.get(text, []) for text in texts], metrics)


def _add(found: Mapping[str, list[str]], accepted: Iterable[pa.RecordBatch], step: int, most: int) -> None:
    """Add a step's paraphrases (`tables.PARAPHRASES`) in other words than the query and than those that it has."""
    for batch in accepted:
        columns = (batch[name].to_pylist() for name in ("caption", f"paraphrase_{step}"))
        for text, paraphrase in zip(*columns, strict=True):
            if len(found[text]) < most and words(paraphrase) not in map(words, (text, *found[text])):
                found[text].append(paraphrase)


def _needed(accepted: Iterable[pa.RecordBatch], found: Mapping[str, list[str]], most: int) -> list[pa.RecordBatch]:
    """Step 1's rows that step 2 is asked about: as many of a query's paraphrases as it lacks to have `most`."""
    lacking, rows = {text: most - len(paraphrases) for text, paraphrases in found.items()}, list[pa.RecordBatch]()
    for batch in accepted:
        chosen = list[bool]()
        for text, paraphrase in zip(*(batch[name].to_pylist() for name in ("caption", "paraphrase_1")), strict=True):
            chosen.append(lacking[text] > 0 and paraphrase in found[text])
            lacking[text] -= chosen[-1]
        rows.append(batch.filter(pa.array(chosen, pa.bool_())))
    return rows


def embed_queries(run: Run, model: str, expansion: Expansion) -> NDArray[np.float32]:
    """The mean feature of each query and its paraphrases by a model, as `paraclip search` names it: float32 [n, d]."""
    from paraclip_core.clip.encode import encode_texts
    from paraclip_core.clip.load import load_clip
    from paraclip_core.clip.model import pick_device

    clip = load_clip(str(find_release(model, run.store)), pick_device(run.settings.run.device))
    return mean_features(partial(encode_texts, clip), expansion.groups)


def expand(
    run: Run, model: str, queries: Sequence[str], most: int, progress: Progress = silent
) -> tuple[Expansion, NDArray[np.float32]]:
    """Paraphrase queries and embed them, see :func:`paraphrase_queries` and :func:`embed_queries`."""
    # Before anything is paid for.
    find_release(model, run.store)
    expansion = paraphrase_queries(run, queries, most, progress)
    return expansion, embed_queries(run, model, expansion)


def write_heads(path: Path, run: Run, model: str, expansion: Expansion, vectors: NDArray[np.float32]) -> None:
    """Write a heads file (schema `tables.HEADS`) of queries that were expanded for a model, whole or not at all."""
    release = find_release(model, run.store)
    reference = str(release.absolute() if isinstance(release, Path) else release)
    columns = [
        pa.array(expansion.queries, pa.string()),
        pa.array(expansion.paraphrases, HEADS.field("paraphrases").type),
        pa.array(list(vectors), HEADS.field("vector").type),
    ]
    write_table(path, pa.Table.from_arrays(columns, schema=HEADS.with_metadata({HEADS_MODEL: reference})))
