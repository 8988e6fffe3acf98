"""Query pairs, paraphrases and hard negatives, over any gallery, as they need no images of their own.

Both texts of a pair rank the same images. Two texts that people judged equivalent should find the same ones; a query
and its hard negative, similar in wording but different in meaning, should not. An encoder that embeds all texts alike
agrees on both, so what counts is the margin between the two agreements (the idea of LGIP, arXiv 2511.13494: invariance
against sensitivity).

Pairs come from files, each in its published format: SICK (Marelli et al., LREC 2014; entailment with a relatedness of
4.5 or more, and contradictions as hard negatives), STS files with a header (a score of 4.5 or more, and only the
captions genre if genres are stated), SugarCrepe's and SugarCrepe++'s JSON, and rows with `query` and
`paraphrased_query`, `hard_negative` or both. Without a path the pairs are the evaluation split's captions,
paraphrased by rules (:data:`RULES`) and reported by rule, without hard negatives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.base import Encoder, ImagePool, Measured, plain_queries, unique_features
from paraclip_core.evaluation.benchmarks import Benchmark, Metric, Source, Task
from paraclip_core.evaluation.benchmarks.paraphrased import DEPTH, ENDINGS, PARAPHRASED
from paraclip_core.evaluation.intervals import Sample
from paraclip_core.evaluation.metrics import average_overlap, jaccard
from paraclip_core.evaluation.published import every_image, plain_tsv, records
from paraclip_core.evaluation.published import field as text_field
from paraclip_core.evaluation.scores import top_k

EQUAL = 4.5
"""Human score, out of 5, from which two sentences count as a query and its paraphrase."""
HARD_NEGATIVES = ("hard_negative", "negative_caption")

_ARTICLE = re.compile(r"\b(?:an?|the) ", re.IGNORECASE)
_FUNCTION_WORD = re.compile(
    r"\b(?:an?|the|is|are|was|were|be|being|of|in|on|at|to|by|for|from|with|and|or|that|which|while|as|its?|his|her|"
    r"their|there|some|this|these)\b ?",
    re.IGNORECASE,
)
_PHRASE = re.compile(r"^(.+?) ((?:above|at|behind|beside|by|in|near|next to|on|under|with) .+)$", re.IGNORECASE)
_SINGULAR = re.compile(
    r"(?:an? )?((?:[a-z-]+ ){0,2}?[a-z-]{2,}[a-rt-z])(?=$|[.,]| (?:and|at|behind|by|in|near|next|of|on|under|with) )",
    re.IGNORECASE,
)


def _plural(query: str) -> str:
    if not (match := _SINGULAR.match(query)):
        return query
    noun = match[1]
    if re.search(r"(ch|sh|x|z)$", noun):
        noun += "es"
    else:
        noun = f"{noun[:-1]}ies" if re.search(r"[^aeiou]y$", noun) else f"{noun}s"
    return noun + query[match.end() :]


def _order(query: str) -> str:
    body = query.rstrip(".")
    if match := _PHRASE.match(body):
        return f"{match[2]}, {match[1]}"
    first, _, rest = body.rpartition(" ")
    return f"{rest}, {first}" if first and "," not in query and not _ARTICLE.search(query) else query


def _typo(query: str) -> str:
    longest = max(re.findall(r"[^\W\d_]{4,}", query), key=len, default="")
    middle = len(longest) // 2
    swapped = longest[: middle - 1] + longest[middle] + longest[middle - 1] + longest[middle + 1 :] if longest else ""
    return query.replace(longest, swapped, 1)


RULES: Mapping[str, Callable[[str], str]] = {
    "capitals": str.upper,
    "plural": _plural,
    "article": lambda query: _ARTICLE.sub("", query) if _ARTICLE.search(query) else f"the {query}",
    "word order": _order,
    "punctuation": lambda query: query.rstrip(".") if query.endswith(".") else f"{query}.",
    "typo": _typo,
    "a photo of": lambda query: f"a photo of {query[0].lower()}{query[1:]}",
    "keywords": lambda query: _FUNCTION_WORD.sub("", query.rstrip(" .")).strip() or query,
}
"""Common variations in English: each rule returns a paraphrase of a query, or the query itself."""


class QueryPair(NamedTuple):
    """A query and its paraphrase or hard negative."""

    query: str
    other: str
    kind: str = ""
    """`hard_negative`, or the rule that made the paraphrase; empty if a person or a model did."""


def by_rule(query: str) -> list[QueryPair]:
    """A query paired with the result of each rule."""
    return [QueryPair(query, other, kind) for kind, rule in RULES.items() if (other := rule(query)) != query]


def files(path: Path, split: str | None = None) -> list[Path]:
    """The files of pairs: the file itself, or those in a folder that contain pairs."""
    if not path.is_dir():
        return [path]
    inside = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    return [file for file in inside if file.suffix in ENDINGS or re.fullmatch(r"SICK(_\w+)?\.txt", file.name)]


def read(path: Path) -> list[QueryPair]:
    return [
        QueryPair(query.strip(), other.strip(), kind) for file in files(path) for query, other, kind in _pairs(file)
    ]


def distinct(pairs: Sequence[QueryPair]) -> list[QueryPair]:
    """The pairs of two different texts, ignoring case and spaces as most tokenizers do; all of those with a `kind`."""
    return [pair for pair in pairs if pair.kind or pair.query.casefold().split() != pair.other.casefold().split()]


def _pairs(file: Path) -> Iterator[tuple[str, str, str]]:
    if file.suffix == ".txt":
        for number, row in plain_tsv(file, ("sentence_A", "sentence_B", "relatedness_score")):
            label = row.get("entailment_judgment", row.get("entailment_label"))
            if label == "CONTRADICTION" or (label == "ENTAILMENT" and _score(file, number, row) >= EQUAL):
                yield row["sentence_A"], row["sentence_B"], "hard_negative" if label == "CONTRADICTION" else ""
        return
    for number, row in _rows(file):
        if {"score", "sentence1", "sentence2"} <= row.keys():
            if "captions" in row.get("genre_file", "captions") and _score(file, number, row) >= EQUAL:
                yield row["sentence1"], row["sentence2"], ""
            continue
        query = text_field(file, number, row, "query", "caption")
        others = [("", name) for name in PARAPHRASED] + [("hard_negative", name) for name in HARD_NEGATIVES]
        stated = [(kind, name) for kind, name in others if row.get(name) not in (None, "")]
        if not stated:
            raise BenchmarkError(
                f"{file}, row {number}: neither paraphrased_query nor hard_negative; expected query and "
                "paraphrased_query, hard_negative or both; its "
                f"fields are {', '.join(row)}"
            )
        for kind, name in stated:
            yield query, text_field(file, number, row, name), kind


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    # STS files have quotation marks that are ordinary characters.
    if file.suffix == ".tsv":
        with file.open("rb") as start:
            if b"sentence1" in start.readline():
                return plain_tsv(file, ("score", "sentence1", "sentence2"))
    return records(file)


def _score(file: Path, number: int, row: Mapping[str, str]) -> float:
    text = row.get("score") or row.get("relatedness_score") or "nan"
    try:
        return float(text)
    except ValueError as error:
        raise BenchmarkError(f"{file}, line {number}: score {text!r}, expected a number or a blank") from error


def load(source: Source) -> Task:
    """Load pairs from files, or from the stored captions by rules, to search a run's images or the named ones."""
    path, stored = source.path, source.stored
    if path is not None:
        pairs, where = read(path), str(path)
    elif stored is not None:
        first = dict(zip(reversed(stored.captions.image_ids), reversed(stored.captions.captions), strict=True))
        pairs = [pair for query in dict.fromkeys(first.values()) for pair in by_rule(query)]
        where = f"split {stored.captions.split!r}"
    else:
        raise BenchmarkError("it needs a path: there is no ingested split outside a run")
    if (queries := len({pair.query for pair in distinct(pairs)})) < 2:
        raise BenchmarkError(f"{where} has pairs of {queries} queries; an interval needs at least two")
    if source.images is not None:
        pool = every_image(source.images, {})
    elif stored is not None:
        pool = stored.pool(stored.captions.image_ids)
    else:
        raise BenchmarkError("it searches images and none are named; name their location with the option `images`")
    if len(pool.ids) < DEPTH:
        raise BenchmarkError(f"its pool has {len(pool.ids)} images; expected at least {DEPTH}")
    queries = plain_queries([pair.query for pair in distinct(pairs)], pool)
    return Task(lambda encoder: measure(pairs, pool, encoder), queries=queries)


def measure(listed: Sequence[QueryPair], pool: ImagePool, encoder: Encoder) -> Measured:
    """AO@10 and JS@10 of paraphrased queries, of each kind and of hard negatives, and the margin; the pairs of a query
    form a cluster."""
    pairs = distinct(listed)
    features, index = unique_features(encoder.texts, [*(pair.query for pair in pairs), *(pair.other for pair in pairs)])
    ranked = top_k(features, pool.features(encoder), DEPTH)
    count = len(pairs)
    lists = ranked[index[:count]], ranked[index[count:]]
    overlap, shared = average_overlap(*lists, DEPTH), jaccard(*lists, DEPTH)
    clusters, kinds = index[:count].astype(np.int64), np.array([pair.kind for pair in pairs])
    hard_negative = kinds == "hard_negative"
    classes = [kind for kind in dict.fromkeys(kinds.tolist()) if kind not in ("", "hard_negative")]
    parts = {"": ~hard_negative, **{f"@{kind}": kinds == kind for kind in classes}}
    samples = {}
    for part, rows in parts.items():
        if len(np.unique(clusters[rows])) > 1:
            samples[f"ao@{DEPTH}{part}"] = Sample(overlap[rows], clusters[rows])
            if not part:
                samples[f"js@{DEPTH}"] = Sample(shared[rows], clusters[rows])
    if len(np.unique(clusters[hard_negative])) > 1:
        samples[f"hard_negative_ao@{DEPTH}"] = Sample(overlap[hard_negative], clusters[hard_negative])
        samples[f"hard_negative_js@{DEPTH}"] = Sample(shared[hard_negative], clusters[hard_negative])
        if f"ao@{DEPTH}" in samples:
            samples["margin"] = Sample(_difference(overlap, hard_negative), clusters)
    notes = {
        "protocol": "both texts rank all images of the pool; margin: agreement of paraphrased queries less theirs",
        "images": len(pool.ids),
        "pairs": int((~hard_negative).sum()),
        "hard_negatives": int(hard_negative.sum()),
        "pairs_with_equal_texts": len(listed) - count,
        **(
            {}
            if "margin" in samples
            else {"margin": "unknown, for it needs hard negatives and paraphrased queries, of two queries each"}
        ),
    }
    return Measured(samples, notes, {"query": lists[0], "paraphrased_query": lists[1]})


def _difference(values: NDArray[np.float64], hard_negative: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Values [n] whose mean is the paraphrased queries' mean minus the hard negatives'.

    Each is centered at the mean of its kind: a bootstrap draw has other numbers of both kinds than the file, and only
    the agreements drawn may move its mean, not these numbers (the linearization of a difference of two means).
    """
    more, less = values[~hard_negative], values[hard_negative]
    centered = np.where(hard_negative, (less.mean() - values) / len(less), (values - more.mean()) / len(more))
    return more.mean() - less.mean() + centered * len(values)


QUERY_PAIRS = Benchmark(
    title="A query and its paraphrase",
    metrics=(
        Metric(f"ao@{DEPTH}", f"AO@{DEPTH}", headline=True, by_part=True),
        Metric(f"js@{DEPTH}", f"JS@{DEPTH}"),
        Metric("margin", "Margin over hard negatives", headline=True),
        Metric(
            f"hard_negative_ao@{DEPTH}", f"AO@{DEPTH} with hard negatives", lower_is_better=True, weighed_by="margin"
        ),
        Metric(
            f"hard_negative_js@{DEPTH}", f"JS@{DEPTH} with hard negatives", lower_is_better=True, weighed_by="margin"
        ),
    ),
    load=load,
    files=files,
    aliases=("sick-pairs", "hard-negatives"),
    searches_images=True,
    resampled="queries",
    searches_stored=True,
    task="query_pairs",
    needs_images=True,
)
