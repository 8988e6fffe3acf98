"""Queries of a log and their paraphrases over an image index, without labels: do both find the same images?

Besides the agreement there is a margin over hard negatives that are made by rule (:func:`hard_negatives`), and, as far
as the log says which image was clicked, how often a query and its paraphrase find that image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.base import Encoder, ImagePool, Measured, plain_queries
from paraclip_core.evaluation.benchmarks import RECALL_DEPTHS, Benchmark, Metric, Source, Task, recalls
from paraclip_core.evaluation.intervals import Sample
from paraclip_core.evaluation.metrics import recall_at_k, reciprocal_rank
from paraclip_core.evaluation.pairs import AGREEMENT, DEPTH, NEGATIVES, SIDES, QueryPair, differ, measure_pairs
from paraclip_core.tables import LOG_QUERIES


@dataclass(frozen=True)
class LogQueries:
    """Queries, each with its paraphrase."""

    queries: Sequence[str]
    paraphrased: Sequence[str]
    clicked: Sequence[str | None]
    """The image that was clicked most often; None if none was, or it is not known."""
    frequencies: Sequence[str]
    """``head``, ``body`` or ``tail``."""


def read(path: Path) -> LogQueries:
    """Read queries in the schema `tables.LOG_QUERIES` that differ from their paraphrases."""
    columns = ["caption", "paraphrased_query", "image_id", "frequency"]
    rows = pq.read_table(path, columns=columns, schema=LOG_QUERIES).to_pylist()
    distinct = [row for row in rows if differ(row["caption"], row["paraphrased_query"])]
    return LogQueries(*([row[name] for row in distinct] for name in columns))


def hard_negatives(queries: Sequence[str]) -> list[QueryPair]:
    """A text for each query that looks like it and means something else: it asks for one thing more, the last word of
    the next query (an *add* of SugarCrepe, Hsieh et al. 2023). Training makes negations and changed words, never this.
    """
    pairs = []
    for number, query in enumerate(queries):
        words = {word.casefold() for word in query.split()}
        following = (queries[(number + step) % len(queries)].split()[-1] for step in range(1, len(queries)))
        if more := next((word for word in following if word.casefold() not in words), None):
            pairs.append(QueryPair(query, f"{query} and {more}", hard_negative=True))
    return pairs


def load(source: Source) -> Task:
    """Load queries of a log from a file of a run, to search its index."""
    path, stored = source.need_path(), source.stored
    if stored is None:
        raise BenchmarkError("it searches the index of a run, and there is none outside a run")
    log = read(path)
    if len(log.queries) < 2:
        raise BenchmarkError(f"{len(log.queries)} queries have a paraphrase; an interval needs at least two")
    pool = stored.pool([image for image in log.clicked if image is not None])
    if len(pool.ids) < DEPTH:
        raise BenchmarkError(f"the index has {len(pool.ids)} images; expected at least {DEPTH}")
    queries = plain_queries(log.queries, pool, [image or "" for image in log.clicked])
    groups = dict(zip(log.queries, log.frequencies, strict=True))
    queries = replace(queries, groups=[groups[text] for text in queries.texts])
    return Task(lambda encoder: measure(log, pool, encoder), queries=queries)


def measure(log: LogQueries, pool: ImagePool, encoder: Encoder) -> Measured:
    """Agreement and margin of all queries, and recall and MRR of the clicked images that are in the pool."""
    pairs = [QueryPair(query, other) for query, other in zip(log.queries, log.paraphrased, strict=True)]
    measured = measure_pairs([*pairs, *hard_negatives(log.queries)], pool, encoder)
    targets = pool.find([image or "" for image in log.clicked])
    clicks = np.flatnonzero(targets >= 0)
    samples = dict(measured.samples)
    # With a single clicked image there is no interval.
    if len(np.unique(targets[clicks])) > 1:
        for side, ranked in zip(SIDES, measured.ranked.values(), strict=True):
            samples |= _found(side, ranked[: len(pairs)][clicks], targets[clicks])
    notes = {
        **measured.notes,
        "hard_negatives_by": "rules: the query and the last word of another one",
        "queries": len(pairs),
        "queries_with_a_known_click": len(clicks),
    }
    return Measured(samples, notes, measured.ranked)


def _found(side: str, ranked: NDArray[np.int64], targets: NDArray[np.int64]) -> Mapping[str, Sample]:
    values = {
        f"{side}_text_to_image_recall@{k}": Sample(recall_at_k(ranked, targets, k), targets) for k in RECALL_DEPTHS
    }
    return values | {f"{side}_mrr@{DEPTH}": Sample(reciprocal_rank(ranked, targets), targets)}


QUERY_LOG = Benchmark(
    title="Queries of a log",
    metrics=(
        *AGREEMENT,
        *NEGATIVES,
        *recalls("caption_text_to_image_recall", "query → clicked image recall"),
        *recalls("paraphrased_query_text_to_image_recall", "paraphrased query → clicked image recall"),
        Metric(f"caption_mrr@{DEPTH}", f"query → clicked image MRR@{DEPTH}"),
        Metric(f"paraphrased_query_mrr@{DEPTH}", f"paraphrased query → clicked image MRR@{DEPTH}"),
    ),
    load=load,
    searches_images=True,
    resampled="queries",
    searches_stored=True,
)
