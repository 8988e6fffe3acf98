"""The audit's figures against a plain computation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.clip.search import Searcher
from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.audit import audit_index, query_pairs
from paraclip_core.evaluation.benchmarks.query_pairs import RULES
from paraclip_core.evaluation.pairs import QueryPair

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(60, 8))
IDS = [f"i{row}" for row in range(60)]
PAIRS = [("a dog", "a hound"), ("a dog", "the dog"), ("two cats", "a pair of cats"), ("a red car", "a crimson car")]


def vectors(texts: Sequence[str]) -> np.ndarray:
    """A direction for each text, by its letters."""
    rows = np.array([[text.count(letter) + 0.1 for letter in "adehorst"] for text in texts], np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def overlap(first: list[int], second: list[int]) -> float:
    return sum(len(set(first[:depth]) & set(second[:depth])) / depth for depth in range(1, 11)) / 10


def test_overlaps_of_every_pair() -> None:
    audit = audit_index(Searcher(IMAGES, IDS), {"base": vectors}, PAIRS)
    unit = IMAGES / np.linalg.norm(IMAGES, axis=1, keepdims=True)

    def ranked(text: str) -> list[int]:
        return np.argsort(-(unit @ vectors([text])[0]), kind="stable")[:10].tolist()

    expected = {pair: 100 * overlap(*map(ranked, pair)) for pair in PAIRS}
    assert {(pair.query, pair.paraphrased_query): pair.ao["base"] for pair in audit.pairs} == pytest.approx(
        expected, abs=0.01
    )
    assert audit.figures["base"]["ao"].mean == pytest.approx(np.mean(list(expected.values())), abs=0.01)
    overlaps = [pair.ao["base"] for pair in audit.pairs]
    assert overlaps == sorted(overlaps) and audit.queries == 3 and not audit.gain
    low, high = audit.figures["base"]["ao"].low, audit.figures["base"]["ao"].high
    assert low is not None and high is not None and low <= audit.figures["base"]["ao"].mean <= high


def test_what_a_second_model_changes_for_the_same_queries() -> None:
    turned = np.roll(np.eye(8, dtype=np.float32), 1, 0)

    def other(texts: Sequence[str]) -> np.ndarray:
        return vectors(texts) @ turned

    assert audit_index(Searcher(IMAGES, IDS), {"base": vectors}, PAIRS).churn is None
    churn = audit_index(Searcher(IMAGES, IDS), {"base": vectors, "tuned": other}, PAIRS).churn
    assert churn is not None and (churn.queries, churn.images, churn.known) == (3, 60, None)
    unit = IMAGES / np.linalg.norm(IMAGES, axis=1, keepdims=True)
    shared = []
    for query in dict.fromkeys(query for query, _ in PAIRS):
        lists = [set(np.argsort(-(unit @ encode([query])[0]))[:10].tolist()) for encode in (vectors, other)]
        shared.append(len(lists[0] & lists[1]))
    assert churn.overlap == pytest.approx(10 * np.mean(shared), abs=0.01)
    assert [query.shared for query in churn.most_changed] == sorted(shared)
    highest = (unit @ other([PAIRS[0][0], PAIRS[2][0], PAIRS[3][0]]).T).max()
    assert churn.thresholds and all(row.tuned <= highest for row in churn.thresholds)


def test_a_model_to_which_all_texts_are_one_agrees_with_itself() -> None:
    def collapsed(texts: Sequence[str]) -> np.ndarray:
        return np.eye(1, 8, dtype=np.float32).repeat(len(texts), 0)

    audit = audit_index(Searcher(IMAGES, IDS), {"base": vectors, "tuned": collapsed}, PAIRS)
    assert audit.figures["tuned"]["ao"].mean == audit.figures["tuned"]["js"].mean == 100
    assert audit.gain["ao"].mean == pytest.approx(100 - audit.figures["base"]["ao"].mean, abs=0.02)


def test_one_query_has_no_interval_and_what_is_no_query_is_named() -> None:
    audit = audit_index(Searcher(IMAGES[:4], IDS[:4]), {"base": vectors}, PAIRS[:1])
    assert audit.depth == 4 and audit.figures["base"]["js"].mean == 100 and audit.figures["base"]["js"].low is None
    with pytest.raises(BenchmarkError, match="no query has a paraphrased query"):
        audit_index(Searcher(IMAGES, IDS), {"base": vectors}, [])
    assert query_pairs([("a", "b"), ("a", "b"), ["c", "d"]]) == [QueryPair("a", "b"), QueryPair("c", "d")]
    bad: list[Any] = [("a", 1), 7, "", (), ("a", "b", "c", "d")]
    for entry in bad:
        with pytest.raises(BenchmarkError, match=r"entry 2 is .*expected a query, or a tuple"):
            query_pairs(["a dog", entry])
    with pytest.raises(BenchmarkError, match="expected a list of queries"):
        query_pairs("a dog")


def rules(query: str) -> dict[str, str]:
    return {pair.part: pair.other for pair in query_pairs([query])}


def test_every_rule() -> None:
    assert rules("a dog on a beach") == {
        "capitals": "A DOG ON A BEACH",
        "plural": "dogs on a beach",
        "article": "dog on beach",
        "word order": "on a beach, a dog",
        "punctuation": "a dog on a beach.",
        "typo": "a dog on a baech",
        "a photo of": "a photo of a dog on a beach",
        "keywords": "dog beach",
    }
    plurals = {"a church": "churches", "red puppy": "red puppies", "a toy by a wall": "toys by a wall"}
    assert {query: rules(query)["plural"] for query in plurals} == plurals
    assert rules("golden retriever")["word order"] == "retriever, golden"
    assert rules("Dogs play.")["punctuation"] == "Dogs play" and rules("Dogs play.")["a photo of"][11:] == "dogs play."
    for query in ("two cats in a room", "dogs", "a boy is riding a bike", "日本の犬"):
        assert "plural" not in rules(query), query


@given(st.text(min_size=1).filter(str.strip))
def test_any_text_gets_paraphrases_that_differ_from_it(query: str) -> None:
    pairs = query_pairs([query])
    assert "a photo of" in {pair.part for pair in pairs} <= set(RULES)
    assert all(pair.query == query.strip() != pair.other for pair in pairs)
