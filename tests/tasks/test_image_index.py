"""Search over a run's images, and what an index alone is audited with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from paraclip.storage.features import INDEX, FeatureStore, write_index, write_shard
from paraclip.tasks import image_index
from paraclip.tasks.image_index import QUERIES, SearchTarget, queries_of_index
from paraclip_core.clip import search as nearest
from paraclip_core.clip.index import ImageIndex
from paraclip_core.clip.search import Searcher


def _target(folder: Path, shards: list[np.ndarray]) -> SearchTarget:
    tables, names = [], iter("abcdefghij")
    for number, rows in enumerate(shards):
        write_shard(folder, number, rows)
        columns = {"image_id": [next(names) for _ in rows], "shard": [number] * len(rows), "row": range(len(rows))}
        tables.append(pa.table(columns | {"pixels": [b"0" * 16] * len(rows)}, schema=INDEX))
    write_index(folder, tables)
    stored = FeatureStore(folder)
    return SearchTarget("base", "tuned", ImageIndex(stored.view(), stored.image_ids, "stored"), None)


def _of_length_1(score: float) -> list[float]:
    """24 numbers that float16 holds exactly, the first of them the cosine with the first axis."""
    quarters = int((1 - score**2) * 16)
    eighths = round((1 - score**2 - quarters / 16) * 64)
    return ([score] + [0.25] * quarters + [0.125] * eighths + [0.0] * 24)[:24]


def test_images_of_several_shards_are_ranked_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_index, "load_clip", lambda *_: SimpleNamespace(embed_dim=24))
    monkeypatch.setattr(image_index, "image_tower_hash", lambda _: "one")
    monkeypatch.setattr(nearest, "encode_texts", lambda *_: np.eye(1, 24, dtype=np.float32))
    monkeypatch.setattr(nearest, "BLOCK", 2)
    scores = np.array([_of_length_1(score) for score in (0.25, 0.5, -0.5, 0.75, 0.0, 0.25, 0.75, 0.125, 0.75)])
    target = _target(tmp_path, [scores[:5], scores[5:]])
    hits = image_index.search(target, "two dogs", 5)["tuned"]
    assert [(hit.rank, hit.image_id, hit.score) for hit in hits] == [
        (1, "d", 0.75), (2, "g", 0.75), (3, "i", 0.75), (4, "b", 0.5), (5, "a", 0.25),
    ]  # fmt: skip
    assert len(image_index.search(target, "two dogs", 20)["base"]) == 9


def target(captions: Any, features: np.ndarray) -> SearchTarget:
    ids = [f"i{row}" for row in range(len(features))]
    return SearchTarget("base", "base", ImageIndex(features, ids, "test"), captions)


def test_two_captions_of_an_image_are_a_pair(tmp_path: Path) -> None:
    (tmp_path / "captions").mkdir()
    rows = [("i0", "a dog"), ("gone", "a bus"), ("i0", "a hound"), ("i1", "a cat"), ("i1", "a cat"), ("i0", "a pet")]
    table = pa.table({"image_id": [row[0] for row in rows], "caption": [row[1] for row in rows]})
    pq.write_table(table, tmp_path / "captions" / "0.parquet")
    of_run = target(SimpleNamespace(path=tmp_path), np.eye(3, 8))
    searcher = Searcher(of_run.index.features, of_run.index.ids)
    expected = [("a dog", "a hound", "another caption"), "a dog", "a cat"]
    assert queries_of_index(of_run, searcher, lambda _: None) == expected


def test_an_index_without_captions_is_asked_for_what_it_shows() -> None:
    """Twice as many images of one name as of another, and none of the rest."""
    names = np.random.default_rng(0).normal(size=(len(IMAGENET_CLASSNAMES), 32))
    names /= np.linalg.norm(names, axis=1, keepdims=True)
    alone = target(None, names[[7, 3, 7]])
    searcher = Searcher(alone.index.features, alone.index.ids)
    first = queries_of_index(alone, searcher, lambda _: names)
    assert first == [IMAGENET_CLASSNAMES[7], IMAGENET_CLASSNAMES[3]]
    many = target(None, names)
    assert len(queries_of_index(many, Searcher(many.index.features, many.index.ids), lambda _: names)) == QUERIES
