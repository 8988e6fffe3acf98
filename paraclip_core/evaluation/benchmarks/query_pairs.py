"""Query pairs, paraphrases and hard negatives, over any gallery, as they need no images of their own.

Pairs come from files, each in its published format: SICK (Marelli et al., LREC 2014; entailment with a relatedness of
4.5 or more, and contradictions as hard negatives), STS files with a header (a score of 4.5 or more, and only the
captions genre if genres are stated), SugarCrepe's (by category) and SugarCrepe++'s JSON, and rows with `query` or
`caption` and `paraphrased_query`, `hard_negative` or both; with a `caption`, a `query` is a paraphrase of it. If a row
names its image and this is searched, recall is measured, too. Without a path the pairs are the evaluation split's
captions, paraphrased by rules (:data:`RULES`) and reported by rule, without hard negatives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.base import Encoder, ImagePool, Measured, plain_queries
from paraclip_core.evaluation.benchmarks import Benchmark, Source, Task
from paraclip_core.evaluation.benchmarks.paraphrased import ENDINGS, PARAPHRASED
from paraclip_core.evaluation.pairs import (
    AGREEMENT,
    DEPTH,
    NEGATIVES,
    PREFERS,
    RECALLS,
    QueryPair,
    distinct,
    measure_pairs,
)
from paraclip_core.evaluation.published import every_image, plain_tsv, records
from paraclip_core.evaluation.published import field as text_field

EQUAL = 4.5
"""Human score, out of 5, from which two sentences count as a query and its paraphrase."""
WRITTEN = (*PARAPHRASED, "query")
"""Fields of texts with the same meaning; a `query` is one if the row has a caption, too."""
HARD_NEGATIVES = ("hard_negative", "negative_caption")
IMAGE = ("image_id", "filename", "image")

ARTICLES = ("a", "an", "the")
FUNCTION_WORDS = (
    *(*ARTICLES, "is", "are", "was", "were", "be", "being", "of", "in", "on", "at", "to", "by", "for", "from", "with"),
    *("and", "or", "that", "which", "while", "as", "it", "its", "his", "her", "their", "there", "some"),
    *("this", "these"),
)
"""Words without content, which a search query lacks."""
_ARTICLE = re.compile(rf"\b(?:{'|'.join(ARTICLES)}) ", re.IGNORECASE)
FUNCTION_WORD = re.compile(rf"\b(?:{'|'.join(FUNCTION_WORDS)})\b ?", re.IGNORECASE)
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
    "keywords": lambda query: FUNCTION_WORD.sub("", query.rstrip(" .")).strip() or query,
}
"""Common variations in English: each rule returns a paraphrase of a query, or the query itself."""
TRAINED_ON = ("article", "keywords")
"""The rules that training has, too (:mod:`paraclip_core.training.rewordings`), so that they prove no gain."""


def by_rule(query: str) -> list[QueryPair]:
    """A query paired with the result of each rule."""
    return [QueryPair(query, other, part=name) for name, rule in RULES.items() if (other := rule(query)) != query]


def files(path: Path, split: str | None = None) -> list[Path]:
    """The files of pairs: the file itself, or those in a folder that contain pairs."""
    if not path.is_dir():
        return [path]
    inside = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    return [file for file in inside if file.suffix in ENDINGS or re.fullmatch(r"SICK(_\w+)?\.txt", file.name)]


def read(path: Path) -> list[QueryPair]:
    return [pair for file in files(path) for pair in _pairs(file)]


def _pairs(file: Path) -> Iterator[QueryPair]:
    if file.suffix == ".txt":
        for number, row in plain_tsv(file, ("sentence_A", "sentence_B", "relatedness_score")):
            label = row.get("entailment_judgment", row.get("entailment_label"))
            if label == "CONTRADICTION" or (label == "ENTAILMENT" and _score(file, number, row) >= EQUAL):
                yield QueryPair(row["sentence_A"].strip(), row["sentence_B"].strip(), label == "CONTRADICTION")
        return
    for number, row in _rows(file):
        if {"score", "sentence1", "sentence2"} <= row.keys():
            if "captions" in row.get("genre_file", "captions") and _score(file, number, row) >= EQUAL:
                yield QueryPair(row["sentence1"].strip(), row["sentence2"].strip())
            continue
        stated = [name for name in (*WRITTEN, *HARD_NEGATIVES) if row.get(name) not in (None, "")]
        first = "caption" if row.get("caption") not in (None, "") else "query"
        if not (others := [name for name in stated if name != first]):
            raise BenchmarkError(
                f"{file}, row {number}: neither paraphrased_query nor hard_negative; expected query and "
                "paraphrased_query, hard_negative or both; its "
                f"fields are {', '.join(row)}"
            )
        query = text_field(file, number, row, first).strip()
        image = next((row[name] for name in IMAGE if row.get(name)), "")
        parts = {"query": "query", "negative_caption": file.stem}
        if "query" in others:
            parts |= dict.fromkeys(PARAPHRASED, "paraphrase")
        for name in others:
            other = text_field(file, number, row, name).strip()
            yield QueryPair(query, other, name in HARD_NEGATIVES, parts.get(name, ""), image)


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
        # One caption of each image, and of equal captions the first one's image.
        images = dict(zip(reversed(stored.captions.captions), reversed(stored.captions.image_ids), strict=True))
        captions = {image: caption for caption, image in images.items()}
        pairs = [pair._replace(image=image) for image, query in captions.items() for pair in by_rule(query)]
        where = f"split {stored.captions.split!r}"
    else:
        raise BenchmarkError("it needs a path: there is no ingested split outside a run")
    if (queries := len({pair.query for pair in distinct(pairs)})) < 2:
        raise BenchmarkError(f"{where} has pairs of {queries} queries; an interval needs at least two")
    if source.images is not None:
        pool = every_image(source.images, {})
    elif stored is not None:
        pool = stored.pool([*stored.captions.image_ids, *(pair.image for pair in pairs if pair.image)])
    else:
        raise BenchmarkError("it searches images and none are named; name their location with the option `images`")
    if len(pool.ids) < DEPTH:
        raise BenchmarkError(f"its pool has {len(pool.ids)} images; expected at least {DEPTH}")
    plain = distinct(pairs)
    queries = plain_queries([pair.query for pair in plain], pool, [pair.image for pair in plain])
    return Task(lambda encoder: measure(pairs, pool, encoder), queries=queries)


def measure(listed: Sequence[QueryPair], pool: ImagePool, encoder: Encoder) -> Measured:
    """The figures of :func:`measure_pairs` over all images of the pool."""
    pairs = distinct(listed)
    measured = measure_pairs(pairs, pool, encoder)
    notes = {
        "protocol": "both texts rank all images of the pool; margin: agreement of paraphrased queries less theirs",
        **measured.notes,
        "pairs_with_equal_texts": len(listed) - len(pairs),
    }
    if "margin" not in measured.samples:
        notes["margin"] = "unknown, for it needs hard negatives and paraphrased queries, of two queries each"
    return replace(measured, notes=notes)


QUERY_PAIRS = Benchmark(
    title="A query and its paraphrase",
    metrics=(*AGREEMENT, *NEGATIVES, *RECALLS, PREFERS),
    load=load,
    files=files,
    aliases=("sick-pairs", "hard-negatives"),
    searches_images=True,
    resampled="queries",
    searches_stored=True,
    needs_images=True,
)
