"""What changes for the same queries, against a plain computation over lists."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraclip_core.evaluation import churn as module
from paraclip_core.evaluation.base import plain_queries
from paraclip_core.evaluation.churn import MOST, Churn, churn, find
from paraclip_core.evaluation.thresholds import binned
from tests.kit.fake_encoder import WordEncoder, word_pool

Vectors = np.ndarray


def drawn(rng: np.random.Generator, rows: int) -> Vectors:
    # At most of length 1, with few distinct products, which are exact, so that there are ties.
    return rng.integers(-2, 3, (rows, 4)).astype(np.float32) / 4


def ranking(query: Vectors, gallery: Vectors) -> list[int]:
    scores = [sum(a * b for a, b in zip(query.tolist(), image, strict=True)) for image in gallery.tolist()]
    return sorted(range(len(scores)), key=lambda row: -scores[row])


def compared(seed: int, queries: int, images: int) -> tuple[Vectors, Vectors, Vectors, np.ndarray, Churn]:
    rng = np.random.default_rng(seed)
    base, tuned, gallery = drawn(rng, queries), drawn(rng, queries), drawn(rng, images)
    # Some queries keep their vector.
    tuned[::3] = base[::3]
    right = np.unique(rng.integers(0, [queries, images], (queries, 2)), axis=0)
    found = [find(vectors, lambda rows: gallery[rows], images) for vectors in (base, tuned)]
    texts, ids = [f"q{number}" for number in range(queries)], [f"i{number}" for number in range(images)]
    return base, tuned, gallery, right, churn(texts, found[0], found[1], ids, right)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 25))
def test_every_figure(seed: int, queries: int, images: int) -> None:
    base, tuned, gallery, right, result = compared(seed, queries, images)
    depth = min(10, images)
    before, after = ([ranking(query, gallery)[:depth] for query in vectors] for vectors in (base, tuned))
    shared = [len(set(a) & set(b)) for a, b in zip(before, after, strict=True)]
    assert (result.queries, result.images, result.depth) == (queries, images, depth)
    assert result.overlap == pytest.approx(100 * sum(shared) / queries / depth, abs=0.006)
    shares = [100 * shared.count(number) / queries for number in range(depth + 1)]
    assert result.overlaps == pytest.approx(shares, abs=0.006)
    moved = sum(a[0] != b[0] for a, b in zip(before, after, strict=True))
    assert result.first_image_changes == pytest.approx(100 * moved / queries, abs=0.006)
    known: dict[int, set[int]] = {}
    for query, row in right.tolist():
        known.setdefault(query, set()).add(row)
    changes = dict.fromkeys(("entered", "left", "first_gained", "first_lost"), 0)
    for query, rows in known.items():
        ten = bool(rows & set(before[query])), bool(rows & set(after[query]))
        first = before[query][0] in rows, after[query][0] in rows
        changes["entered"] += ten == (False, True)
        changes["left"] += ten == (True, False)
        changes["first_gained"] += first == (False, True)
        changes["first_lost"] += first == (True, False)
    assert result.known is not None and result.known.queries == len(known)
    assert {name: getattr(result.known, name) for name in changes} == changes
    listed = result.most_changed
    assert len(listed) == min(MOST, queries)
    assert [query.shared for query in listed] == sorted(shared)[: len(listed)]
    for query in listed:
        number = int(query.query[1:])
        assert query.base == [f"i{row}" for row in before[number]]
        assert query.tuned == [f"i{row}" for row in after[number]]
        assert set(query.right) == {f"i{row}" for row in known.get(number, set()) & {*before[number], *after[number]}}
    assert "whose right image is known" in result.sentence
    assert Churn.from_json(json.loads(json.dumps(result.as_json()))) == result


@pytest.mark.parametrize("counted", [1, 7 * 40, 1 << 27])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, counted: int) -> None:
    rng = np.random.default_rng(1)
    vectors, gallery = drawn(rng, 30), drawn(rng, 40)
    monkeypatch.setattr(module, "COUNTED", counted)
    whole = find(vectors, lambda rows: gallery[rows], 40)
    monkeypatch.setattr(module, "CELLS", 50)
    monkeypatch.setattr(module, "GALLERY_ROWS", 7)
    read: list[int] = []

    def block(rows: np.ndarray) -> Vectors:
        read.extend(rows.tolist())
        return gallery[rows]

    parts = find(vectors, block, 40)
    assert read == [*range(40)], "every image is read once"
    np.testing.assert_array_equal(parts.rows, whole.rows)
    np.testing.assert_allclose(parts.first, whole.first, atol=1e-6)
    every = binned(vectors @ gallery.T)
    for found in (parts, whole):
        assert found.counts.sum() == 40 * min(30, max(1, counted // 40)) and (found.counts <= every).all()


def test_equal_models_change_nothing() -> None:
    vectors = drawn(np.random.default_rng(3), 50)
    found = find(vectors[:20], lambda rows: vectors[rows], 50)
    result = churn([f"q{n}" for n in range(20)], found, found, [f"i{n}" for n in range(50)])
    assert result.summary() == {"overlap@10": 100.0, "first_image_changes": 0.0, "queries": 20}
    assert result.known is None and result.overlaps == [0.0] * 10 + [100.0]
    assert all(row.base == row.tuned and row.images == row.unchanged for row in result.thresholds)
    assert result.sentence == (
        "For the same query, 10.0 of the first ten images stay on average; 0 of 100 queries show another first image."
    )


def test_queries_are_distinct_and_keep_all_their_images() -> None:
    pool = word_pool(["a", "b", "c"], WordEncoder())
    queries = plain_queries(["x", "y", "x", "x", "z"], pool, ["b", "a", "a", "b", "gone"])
    assert queries.texts == ["x", "y", "z"]
    assert queries.right.tolist() == [[0, 0], [0, 1], [1, 0]]
    assert plain_queries(["x", "x"], pool).right.shape == (0, 2)


def test_groups_are_parts_of_the_whole() -> None:
    rng = np.random.default_rng(3)
    base, tuned, gallery = drawn(rng, 30), drawn(rng, 30), drawn(rng, 40)
    tuned[::3] = base[::3]
    found = [find(vectors, lambda rows: gallery[rows], 40) for vectors in (base, tuned)]
    texts, ids = [f"q{n}" for n in range(30)], [f"i{n}" for n in range(40)]
    groups = ["tail" if n % 3 else "head" for n in range(30)]
    result = churn(texts, found[0], found[1], ids, groups=groups)
    assert list(result.groups) == ["head", "tail"]
    assert result.groups["head"].overlap == 100 and result.groups["head"].first_image_changes == 0
    whole = sum(group.queries * group.overlap for group in result.groups.values()) / 30
    assert whole == pytest.approx(result.overlap, abs=0.01)
    assert Churn.from_json(json.loads(json.dumps(result.as_json()))) == result
