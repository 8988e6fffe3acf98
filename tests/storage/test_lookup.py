"""Ids are found where they are, and nowhere else."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import lookup
from storage.lookup import IdIndex, string_hashes

texts = st.text(max_size=12)


@given(st.lists(texts, unique=True, max_size=30), st.lists(st.none() | texts, max_size=30))
def test_finds_what_a_dictionary_finds(ids: list[str], wanted: list[str | None]) -> None:
    index = IdIndex(pa.array(ids, pa.string()))
    known = {name: row for row, name in enumerate(ids)}
    asked = [*wanted, *ids]
    expected = [known.get(name, -1) if name is not None else -1 for name in asked]
    assert index.find(pa.array(asked, pa.string())).tolist() == expected
    halves = pa.chunked_array([asked[: len(asked) // 2], asked[len(asked) // 2 :]], pa.string())
    assert index.find(halves).tolist() == expected
    assert index.find(pa.array([None, *asked], pa.large_string()).slice(1)).tolist() == expected
    assert len(index) == len(ids) and index.ids.to_pylist() == ids


@given(st.lists(texts, min_size=1, max_size=20))
def test_a_hash_depends_on_its_string_alone(strings: list[str]) -> None:
    together = string_hashes(pa.array(strings))
    assert together.tolist() == [int(string_hashes(pa.array([text]))[0]) for text in strings]
    assert len(set(together.tolist())) == len(set(strings))


def test_an_id_that_comes_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        IdIndex(pa.array(["a", "b", "a"]))


def test_colliding_hashes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # No two strings are known that collide.
    monkeypatch.setattr(lookup, "string_hashes", lambda strings: np.zeros(len(strings), np.uint64))
    index = IdIndex(pa.array(["a", "b", "c"]))
    assert index.find(pa.array(["c", "x", None, "a"])).tolist() == [2, -1, -1, 0]
    with pytest.raises(ValueError, match="twice"):
        IdIndex(pa.array(["a", "b", "a"]))
    assert IdIndex(pa.array(["a"])).find(pa.array(["b", "a"])).tolist() == [-1, 0]
