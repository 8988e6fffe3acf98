"""Rewordings by rules."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.wordings import RULES, wordings


def rules(query: str) -> dict[str, str]:
    return {pair.kind: pair.rewording for pair in wordings([query])}


def test_every_rule() -> None:
    assert rules("a dog on a beach") == {
        "capitals": "A DOG ON A BEACH",
        "plural": "dogs on a beach",
        "article": "dog on beach",
        "word order": "on a beach, a dog",
        "punctuation": "a dog on a beach.",
        "typo": "a dog on a baech",
        "a photo of": "a photo of a dog on a beach",
    }
    plurals = {"a church": "churches", "red puppy": "red puppies", "a toy by a wall": "toys by a wall"}
    assert {query: rules(query)["plural"] for query in plurals} == plurals
    assert rules("golden retriever")["word order"] == "retriever, golden"
    assert rules("Dogs play.")["punctuation"] == "Dogs play" and rules("Dogs play.")["a photo of"][11:] == "dogs play."
    for query in ("two cats in a room", "dogs", "a boy is riding a bike", "日本の犬"):
        assert "plural" not in rules(query), query


@given(st.text(min_size=1).filter(str.strip))
def test_any_text_gets_rewordings_that_differ_from_it(query: str) -> None:
    pairs = wordings([query])
    assert "a photo of" in {pair.kind for pair in pairs} <= set(RULES)
    assert all(pair.query == query.strip() != pair.rewording for pair in pairs)


def test_pairs_stay_as_they_are_and_anything_else_is_named() -> None:
    assert wordings([("a", "b"), ("a", "b"), ["c", "d"]]) == [("a", "b", ""), ("c", "d", "")]
    bad: list[Any] = [("a", 1), 7, "", (), ("a", "b", "c", "d")]
    for entry in bad:
        with pytest.raises(BenchmarkError, match=r"entry 2 is .*expected a query, or a tuple"):
            wordings(["a dog", entry])
    with pytest.raises(BenchmarkError, match="expected a list of queries"):
        wordings("a dog")
