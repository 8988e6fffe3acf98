"""Search over a run's images, and what an index alone is audited with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from paraclip.tasks.image_index import QUERIES, SearchTarget, queries_of_index
from paraclip_core.clip.index import ImageIndex
from paraclip_core.clip.search import Searcher


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
