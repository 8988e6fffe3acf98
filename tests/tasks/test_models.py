"""Where the base of a tuned model is found, and what an index alone is audited with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from paraclip.storage.artifacts import ArtifactStore, Draft
from paraclip.storage.fingerprint import FileHashes
from paraclip.tasks.audit import QUERIES, queries_of_index
from paraclip.tasks.image_index import SearchTarget
from paraclip.tasks.models import candidates_of, find_release, find_tuned, of_control, reference_sources
from paraclip_core.clip.index import ImageIndex
from paraclip_core.clip.reference import fixed_place
from paraclip_core.clip.search import Searcher
from paraclip_core.config import Settings
from paraclip_core.errors import UnknownModelError, UnknownNameError
from tests.tasks.builders import committed

TUNED = "a" * 32


def _folder(folder: Path, weights: str = "weights") -> Path:
    folder.mkdir()
    (folder / "open_clip_config.json").write_text("{}")
    (folder / "open_clip_model.safetensors").write_text(weights)
    return folder


def _tuned(tmp_path: Path, base: str, option: str) -> ArtifactStore:
    """A store with a tuned model as the stages leave it."""
    store = ArtifactStore(tmp_path / "runs")
    committed(store, "features", "f" * 32)
    files = reference_sources(base, FileHashes(tmp_path / "hashes.json"))
    inputs = {"features": "f" * 32, **{f"source:{name}": value for name, value in files.items()}}
    with store.writing("finetune", TUNED):
        draft = Draft("finetune", TUNED, 1, inputs, {"base": option})
        store.commit(draft, {"base": fixed_place(base)}, 0.0)
    return store


def test_a_base_in_a_file_or_from_elsewhere_is_its_name(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_text("weights")
    for number, (base, option) in enumerate(
        ((f"ViT-B-32:{tmp_path / 'w.pt'}", "ViT-B-32:local"), ("ViT-B-32:openai", "ViT-B-32:openai"))
    ):
        assert find_tuned(TUNED, _tuned(tmp_path / str(number), base, option))[1] == base


def test_a_base_that_lies_elsewhere_now_can_be_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "base")
    store = _tuned(tmp_path, str(folder), "local")
    folder.rename(tmp_path / "moved")
    with pytest.raises(UnknownModelError, match=rf"has no {folder}/.*; give its location with --base"):
        find_tuned(TUNED, store)
    assert find_tuned(TUNED, store, str(tmp_path / "moved"))[1] == str(tmp_path / "moved")
    with pytest.raises(UnknownModelError, match=r"is not the model that 'a+' was tuned from"):
        find_tuned(TUNED, store, str(_folder(tmp_path / "other", "other weights")))


def test_a_base_in_a_folder_is_found_from_everywhere_and_by_a_run_of_a_folders_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _folder(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    store = _tuned(tmp_path, "local-dir:base", "local")
    store.set_channel("holiday", {"stage": "finetune", "fingerprint": TUNED})
    for name in ("holiday", "base2", "elsewhere"):
        (tmp_path / name).mkdir()
    assert find_release("holiday", store) == store.path("finetune", TUNED) / "release"
    assert find_tuned("holiday", store)[1] == f"local-dir:{tmp_path / 'base'}"
    with pytest.raises(UnknownNameError, match="base2 holds no open_clip_config"):
        find_release("base2", store)
    # An earlier export of the channel.
    (tmp_path / "holiday").rmdir()
    _folder(tmp_path / "holiday", "older weights")
    assert find_release("holiday", store) == store.path("finetune", TUNED) / "release"
    assert find_release("./holiday", store) == Path("holiday")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert find_tuned(TUNED, store)[1] == f"local-dir:{tmp_path / 'base'}"


def target(captions: Any, features: np.ndarray) -> SearchTarget:
    ids = [f"i{row}" for row in range(len(features))]
    return SearchTarget("base", "base", ImageIndex(features, ids, "test"), captions)


@pytest.mark.parametrize(
    ("columns", "rows", "expected"),
    [
        # Two captions of an image are a pair.
        (
            ("image_id", "caption"),
            [("i0", "a dog"), ("gone", "a bus"), ("i0", "a hound"), ("i1", "a cat"), ("i1", "a cat"), ("i0", "a pet")],
            [("a dog", "a hound", "another caption"), "a dog", "a cat"],
        ),
        # A log is asked for its most frequent queries.
        (
            ("image_id", "caption", "count"),
            [(None, "a dog", 3), ("i0", "a bus", 1), (None, "a cat", 9)],
            ["a cat", "a dog", "a bus"],
        ),
    ],
)
def test_an_index_is_asked_for_its_captions(tmp_path: Path, columns: Any, rows: Any, expected: Any) -> None:
    (tmp_path / "captions").mkdir()
    table = pa.Table.from_pylist([dict(zip(columns, row, strict=True)) for row in rows])
    pq.write_table(table, tmp_path / "captions" / "0.parquet")
    of_run = target(SimpleNamespace(path=tmp_path), np.eye(3, 8))
    searcher = Searcher(of_run.index.features, of_run.index.ids)
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


@pytest.mark.parametrize(
    ("options", "recipes"),
    [
        ({}, ["published", "anchored", "contrast", "ranking", "captions"]),
        ({"finetune": {"recipe": "contrast"}}, ["contrast", "ranking", "captions"]),
        ({"finetune": {"feature_distillation": 1}}, ["own", "ranking", "captions"]),
        (
            {"model": {"base": "ViT-B-32"}, "data": {"index": {"features": "x.npy"}, "sources": [{"path": "log"}]}},
            ["contrast", "ranking"],
        ),
    ],
)
def test_a_control_tries_recipes_that_suit_captions(options: dict[str, Any], recipes: list[str]) -> None:
    control = of_control(Settings.model_validate(options))
    assert control.finetune.texts == "captions"
    assert list(dict.fromkeys(candidate.recipe for candidate in candidates_of(control))) == recipes
