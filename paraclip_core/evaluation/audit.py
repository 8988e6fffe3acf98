"""Audits how consistent an image index is when queries are rephrased, without labels or training.

Each pair is a query and its paraphrased query. Both are ranked over the index; AO@10 and JS@10 measure how much the
two lists agree (:mod:`paraclip_core.evaluation.metrics`), but not whether the images are the right ones. Paraphrased
queries are given, or made by rules for common variations in English, without a language model.

Two models are compared on the queries, too: what the second changes (:mod:`paraclip_core.evaluation.churn`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paraclip_core.clip.search import Searcher
from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.base import unique_features
from paraclip_core.evaluation.benchmarks.query_pairs import by_rule
from paraclip_core.evaluation.churn import Churn, churn, find
from paraclip_core.evaluation.intervals import Sample, delta_interval
from paraclip_core.evaluation.metrics import average_overlap, jaccard
from paraclip_core.evaluation.pairs import QueryPair

DEPTH = 10
RESAMPLES = 1000

Pairs = Sequence[QueryPair]
Encode = Callable[[Sequence[str]], NDArray[np.floating]]


@dataclass(frozen=True)
class Figure:
    """A mean in percent with its bootstrap interval over queries; the interval is None for a single query."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class AuditedPair:
    """A query, its paraphrased query, and each model's results for both, by model name."""

    query: str
    paraphrased_query: str
    kind: str
    """The rule that made the paraphrased query, if any."""
    ao: Mapping[str, float]
    """AO@10 in percent."""
    nearest: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    """Image ids for the query and for the paraphrased query, best first."""


@dataclass(frozen=True)
class Audit:
    """Figures of each model over all pairs."""

    images: int
    queries: int
    depth: int
    figures: Mapping[str, Mapping[str, Figure]]
    """Model → ao or js → figure."""
    gain: Mapping[str, Figure]
    """ao or js → second model minus first, in points; empty for a single model."""
    kinds: Mapping[str, Mapping[str, float]]
    """Kind of paraphrased query → model → AO@10 in percent, the worst of the first model first; empty if no pair has
    a kind."""
    pairs: tuple[AuditedPair, ...]
    """Worst of the first model first."""
    churn: Churn | None = None
    """What the second model changes for the same queries; None for a single model."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def audit_index(searcher: Searcher, models: Mapping[str, Encode], entries: Sequence[Any]) -> Audit:
    """Rank both queries of each pair (see :func:`query_pairs`) with one or two models.

    The pairs of one query form a bootstrap cluster.
    """
    pairs = query_pairs(entries)
    if not pairs:
        raise BenchmarkError("no query has a paraphrased query, so there is nothing to compare")
    depth = min(DEPTH, len(searcher.ids))
    queries = list(dict.fromkeys(pair.query for pair in pairs))
    places = {query: place for place, query in enumerate(queries)}
    clusters = np.array([places[pair.query] for pair in pairs], np.int64)
    ranked = {name: _ranked(searcher, encode, pairs, depth) for name, encode in models.items()}
    values = {
        name: {"ao": average_overlap(*lists, k=depth), "js": jaccard(*lists, k=depth)} for name, lists in ranked.items()
    }
    zero = np.zeros(len(pairs))
    figures = {
        name: {metric: _figure(zero, value, clusters) for metric, value in measured.items()}
        for name, measured in values.items()
    }
    names = list(models)
    gain, changes = {}, None
    if len(names) > 1:
        first, second = (values[name] for name in names[:2])
        gain = {metric: _figure(first[metric], second[metric], clusters) for metric in first}
        before, after = (
            find(unique_features(models[name], queries)[0], searcher.rows, len(searcher.ids)) for name in names[:2]
        )
        changes = churn(queries, before, after, searcher.ids)
    worst = np.argsort(values[names[0]]["ao"], kind="stable").tolist()
    audited = tuple(
        AuditedPair(
            pairs[row].query,
            pairs[row].other,
            pairs[row].part,
            ao={name: round(100 * float(measured["ao"][row]), 2) for name, measured in values.items()},
            nearest={
                name: (_named(caption[row], searcher.ids), _named(paraphrased[row], searcher.ids))
                for name, (caption, paraphrased) in ranked.items()
            },
        )
        for row in worst
    )
    return Audit(len(searcher.ids), len(queries), depth, figures, gain, _by_kind(audited), audited, changes)


def _by_kind(pairs: Sequence[AuditedPair]) -> dict[str, dict[str, float]]:
    kinds: dict[str, list[Mapping[str, float]]] = {}
    for pair in pairs:
        kinds.setdefault(pair.kind, []).append(pair.ao)
    means = {
        kind or "reworded": {name: round(float(np.mean([value[name] for value in values])), 2) for name in values[0]}
        for kind, values in kinds.items()
    }
    return dict(sorted(means.items(), key=lambda item: [*item[1].values()])) if any(kinds) else {}


def _ranked(
    searcher: Searcher, encode: Encode, pairs: Pairs, depth: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    features, index = unique_features(encode, [*(pair.query for pair in pairs), *(pair.other for pair in pairs)])
    rows = searcher.nearest(features, depth)[0][index]
    return rows[: len(pairs)], rows[len(pairs) :]


def _figure(before: NDArray[np.float64], after: NDArray[np.float64], clusters: NDArray[np.int64]) -> Figure:
    mean = round(100 * float((after - before).mean()), 2)
    if len(np.unique(clusters)) < 2:
        return Figure(mean, None, None)
    interval = delta_interval(Sample(before, clusters), Sample(after, clusters), RESAMPLES)
    return Figure(mean, round(100 * interval.low, 2), round(100 * interval.high, 2))


def _named(rows: NDArray[np.int64], ids: Sequence[str]) -> tuple[str, ...]:
    places: list[int] = rows.tolist()
    return tuple(ids[place] for place in places)


def query_pairs(entries: Sequence[Any]) -> list[QueryPair]:
    """The pairs to compare: the given ones and, for a single query, one for each rule."""
    if isinstance(entries, str):
        raise BenchmarkError(f"expected a list of queries or pairs, got the text {entries[:60]!r}")
    pairs: list[QueryPair] = []
    for number, entry in enumerate(entries, 1):
        texts = [entry] if isinstance(entry, str) else list(entry) if isinstance(entry, tuple | list) else []
        if not 1 <= len(texts) <= 3 or not all(isinstance(text, str) for text in texts) or not texts[0].strip():
            raise BenchmarkError(
                f"entry {number} is {str(entry)[:60]!r}; expected a query, or a tuple of a query and its paraphrased "
                "query"
            )
        if len(texts) > 1:
            query, other, *part = texts
            pairs.append(QueryPair(query, other, part="".join(part)))
        else:
            pairs += by_rule(texts[0].strip())
    return list(dict.fromkeys(pairs))
