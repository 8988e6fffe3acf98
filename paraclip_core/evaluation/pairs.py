"""Pairs of texts over a gallery: do both find the same images and, if it is known, the right one?

Two texts of one meaning should find the same images; a query and its hard negative, similar in wording but different
in meaning, should not. An encoder that embeds all texts alike agrees on both. Two figures show it: the margin between
the two agreements (the idea of LGIP, arXiv 2511.13494: invariance against sensitivity), and the agreement of unrelated
queries, which a collapse raises, too. The chance-corrected agreement, (AO - AO of unrelated) / (1 - AO of unrelated),
is what is left of the agreement (as Cohen's kappa corrects that of two raters).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paraclip_core.evaluation.base import Encoder, ImagePool, Measured, unique_features
from paraclip_core.evaluation.benchmarks import RECALL_DEPTHS, Metric, recalls
from paraclip_core.evaluation.intervals import Sample, components
from paraclip_core.evaluation.metrics import average_overlap, jaccard, recall_at_k
from paraclip_core.evaluation.scores import pair_scores, top_k

DEPTH = 10
AO, JS, CORRECTED, UNRELATED = (f"{name}@{DEPTH}" for name in ("ao", "js", "corrected_ao", "unrelated_ao"))
NEGATIVE_AO, NEGATIVE_JS = f"hard_negative_{AO}", f"hard_negative_{JS}"
SIDES = ("caption", "paraphrased_query")
"""The names of a pair's two texts in metrics of recall."""

AGREEMENT = (
    Metric(AO, f"AO@{DEPTH}", headline=True, by_part=True),
    Metric(JS, f"JS@{DEPTH}"),
    Metric(CORRECTED, f"chance-corrected AO@{DEPTH}", headline=True, by_part=True),
    Metric(UNRELATED, f"AO@{DEPTH} of unrelated queries", lower_is_better=True, weighed_by=CORRECTED),
)
NEGATIVES = (
    Metric(NEGATIVE_AO, f"AO@{DEPTH} with hard negatives", lower_is_better=True, by_part=True, weighed_by="margin"),
    Metric(NEGATIVE_JS, f"JS@{DEPTH} with hard negatives", lower_is_better=True, weighed_by="margin"),
    Metric("margin", "Margin over hard negatives", headline=True),
)
RECALLS = (
    *recalls("caption_text_to_image_recall", "caption → image recall"),
    *recalls("paraphrased_query_text_to_image_recall", "paraphrased query → image recall", by_part=True),
)
PREFERS = Metric("image_prefers_query", "image nearer to its query than to the hard negative")


class QueryPair(NamedTuple):
    """A query and its paraphrase or hard negative."""

    query: str
    other: str
    hard_negative: bool = False
    part: str = ""
    """The rule, category or writer of the other text, by which figures are also reported; empty if there is one."""
    image: str = ""
    """The image that the query describes; empty if it is not known."""


def differ(query: str, other: str) -> bool:
    """Whether two texts differ by more than case and spaces, which most tokenizers ignore."""
    return query.casefold().split() != other.casefold().split()


def distinct(pairs: Sequence[QueryPair]) -> list[QueryPair]:
    """The pairs of two different texts, and all that a rule made."""
    return [pair for pair in pairs if pair.part or pair.hard_negative or differ(pair.query, pair.other)]


def measure_pairs(pairs: Sequence[QueryPair], pool: ImagePool, encoder: Encoder) -> Measured:
    """Agreement of paraphrased queries, of unrelated ones and of hard negatives, the margin, and recall of both texts
    of the pairs whose image is in the pool. Pairs that share a text or an image form a cluster."""
    features, index = unique_features(encoder.texts, [*(pair.query for pair in pairs), *(pair.other for pair in pairs)])
    gallery = pool.features(encoder)
    ranked = top_k(features, gallery, DEPTH)
    first, second = index[: len(pairs)], index[len(pairs) :]
    images = pool.find([pair.image for pair in pairs])
    shared_image = np.where(images >= 0, len(features) + images, first)
    clusters = components(first, second, shared_image)
    negative = np.array([pair.hard_negative for pair in pairs])
    lists = ranked[first], ranked[second]
    overlap, shared = average_overlap(*lists, DEPTH), jaccard(*lists, DEPTH)
    samples: dict[str, Sample] = {}

    def add(name: str, values: NDArray[np.float64], rows: NDArray[np.int64]) -> None:
        samples[name] = Sample(values, clusters[rows])

    for part, rows in _parts(pairs, ~negative, clusters):
        add(f"{AO}{part}", overlap[rows], rows)
        if not part:
            add(JS, shared[rows], rows)
        unrelated = average_overlap(lists[0][rows], lists[1][rows[_of_other_cluster(clusters[rows])]], DEPTH)
        add(f"{CORRECTED}{part}", _corrected(overlap[rows], unrelated), rows)
        if not part:
            add(UNRELATED, unrelated, rows)
    for part, rows in _parts(pairs, negative, clusters):
        add(f"{NEGATIVE_AO}{part}", overlap[rows], rows)
        if not part:
            add(NEGATIVE_JS, shared[rows], rows)
    if AO in samples and NEGATIVE_AO in samples:
        samples["margin"] = Sample(_difference(overlap, negative), clusters)
    for part, rows in _parts(pairs, ~negative & (images >= 0), clusters):
        for side, rankings in zip(SIDES, lists, strict=True):
            # The captions of a part are those of the whole.
            for k in RECALL_DEPTHS if side != "caption" or not part else ():
                add(f"{side}_text_to_image_recall@{k}{part}", recall_at_k(rankings[rows], images[rows], k), rows)
    for _, rows in _parts(pairs, negative & (images >= 0), clusters)[:1]:
        query, opposite = (pair_scores(features, side[rows], gallery, images[rows]) for side in (first, second))
        add(PREFERS.name, (query > opposite).astype(np.float64), rows)
    notes: dict[str, Any] = {
        "images": len(pool.ids),
        "different_images": len(np.unique(ranked)),
        "pairs": int((~negative).sum()),
        "hard_negatives": int(negative.sum()),
    }
    return Measured(samples, notes, dict(zip(SIDES, lists, strict=True)))


def _parts(
    pairs: Sequence[QueryPair], wanted: NDArray[np.bool_], clusters: NDArray[np.int64]
) -> list[tuple[str, NDArray[np.int64]]]:
    """The rows of all wanted pairs (an empty name) and of each part (@ and its name); an interval needs two clusters,
    and a single part is the whole."""
    rows = np.flatnonzero(wanted)
    names = np.array([pairs[row].part for row in rows.tolist()], np.str_)
    parts = [(f"@{name}", rows[names == name]) for name in dict.fromkeys(names.tolist()) if name]
    whole = [("", rows), *(parts if len(set(names.tolist())) > 1 else [])]
    return [(name, of_part) for name, of_part in whole if len(np.unique(clusters[of_part])) > 1]


def _of_other_cluster(clusters: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each row the first row of another cluster, half of all clusters away; there are two at least."""
    names, first, cluster = np.unique(clusters, return_index=True, return_inverse=True)
    return first[(cluster + len(names) // 2) % len(names)]


def _corrected(overlap: NDArray[np.float64], unrelated: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values [n] whose mean is (a - u) / (1 - u) for the means a of `overlap` and u of `unrelated`, both [n].

    Each is the ratio's linearization at the means, so a bootstrap draw's mean is the draw's ratio up to terms of second
    order. If unrelated queries agree entirely, it is 0.
    """
    a, u = overlap.mean(), unrelated.mean()
    if u == 1:
        return np.zeros(len(overlap))
    ratio = (a - u) / (1 - u)
    return ratio + (overlap - a - (1 - ratio) * (unrelated - u)) / (1 - u)


def _difference(values: NDArray[np.float64], negative: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Values [n] whose mean is the paraphrased queries' mean minus the hard negatives'.

    Each is centered at the mean of its kind: a bootstrap draw has other numbers of both kinds than the file, and only
    the agreements drawn may move its mean, not these numbers (the linearization of a difference of two means).
    """
    more, less = values[~negative], values[negative]
    centered = np.where(negative, (less.mean() - values) / len(less), (values - more.mean()) / len(more))
    return more.mean() - less.mean() + centered * len(values)
