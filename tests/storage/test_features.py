"""Image features: what was written is read, what is damaged is reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraclip.storage.features import FeatureStore, IdIndex, shard_path, write_index, write_links, write_shard
from paraclip_core.errors import ArtifactError
from paraclip_core.tables import FEATURE_INDEX


def _store(folder: Path, sizes: list[int], d: int = 4) -> np.ndarray:
    """Write shards of these sizes; returns all features."""
    features = np.random.default_rng(0).normal(size=(sum(sizes), d)).astype(np.float16)
    tables, start = [], 0
    for shard, size in enumerate(sizes):
        write_shard(folder, shard, features[start : start + size])
        names = [f"i{start + row}" for row in range(size)]
        columns = {"image_id": names, "shard": [shard] * size, "row": range(size), "pixels": [b"0" * 16] * size}
        tables.append(pa.table(columns, schema=FEATURE_INDEX))
        start += size
    write_index(folder, tables)
    return features


def _all(store: FeatureStore) -> np.ndarray:
    return store.view()[np.arange(len(store))]


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4), data=st.data())
def test_rows_of_any_shards_come_back(
    sizes: list[int], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("features")
    features, n = _store(folder, sizes), sum(sizes)
    store = FeatureStore(folder)
    assert len(store) == n and store.image_ids == [f"i{row}" for row in range(n)]
    view = store.view()
    assert len(view) == n and view.shape == features.shape == (n, 4)
    rows = data.draw(st.lists(st.integers(0, n - 1), max_size=20)) if n else []
    chosen = view[np.array(rows, np.int64)]
    assert chosen.dtype == np.float16
    np.testing.assert_array_equal(chosen, features[rows])
    wanted = [*(f"i{row}" for row in rows), None, "x"]
    assert store.find(wanted).tolist() == [*rows, -1, -1]
    assert store.find(pa.chunked_array([pa.array(wanted, pa.string())])).dtype == np.int64


def test_a_shard_has_the_bytes_that_numpy_writes(tmp_path: Path) -> None:
    for shape in ((3, 4), (0, 4)):
        features = np.ones(shape, np.float16)
        write_shard(tmp_path, 0, features)
        np.save(tmp_path / "numpy.npy", features)
        assert shard_path(tmp_path, 0).read_bytes() == (tmp_path / "numpy.npy").read_bytes()


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"index.*run the features stage"):
        FeatureStore(tmp_path)
    _store(tmp_path, [3, 2])
    for damaged in (b"", shard_path(tmp_path, 1).read_bytes()[:20]):
        shard_path(tmp_path, 1).write_bytes(damaged)
        with pytest.raises(ArtifactError, match="shard-00001"):
            FeatureStore(tmp_path).view()
    (tmp_path / "index.parquet").write_bytes((tmp_path / "index.parquet").read_bytes()[:-30])
    with pytest.raises(ArtifactError, match="index"):
        FeatureStore(tmp_path)


def test_a_view_names_a_shard_that_is_lost_or_cut_while_it_is_read(tmp_path: Path) -> None:
    _store(tmp_path, [3, 4])
    view, path = FeatureStore(tmp_path).view(), shard_path(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-1])
    assert len(view[np.array([0, 5])]) == 2
    with pytest.raises(ArtifactError, match=r"shard-00001\.npy was cut short"):
        view[np.array([0, 6])]
    path.unlink()
    with pytest.raises(ArtifactError, match=r"cannot read .*shard-00001\.npy"):
        view[np.array([0, 5])]


texts = st.text(max_size=12)


@settings(deadline=None)
@given(st.lists(texts, unique=True, max_size=30), st.lists(st.none() | texts, max_size=30))
def test_finds_what_a_dictionary_finds(ids: list[str], wanted: list[str | None]) -> None:
    index = IdIndex(pa.array(ids, pa.string()))
    row_of = {name: row for row, name in enumerate(ids)}
    asked = [*wanted, *ids]
    expected = [row_of.get(name, -1) if name is not None else -1 for name in asked]
    assert index.find(pa.array(asked, pa.string())).tolist() == expected
    halves = pa.chunked_array([asked[: len(asked) // 2], asked[len(asked) // 2 :]], pa.string())
    assert index.find(halves).tolist() == expected
    assert index.find(pa.array([None, *asked], pa.large_string()).slice(1)).tolist() == expected
    assert index.ids.to_pylist() == ids


def test_an_id_that_comes_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        IdIndex(pa.array(["a", "b", "a"]))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_linked_index_gives_unit_rows_of_its_files(tmp_path: Path, dtype: type[np.floating]) -> None:
    rows = np.random.default_rng(0).normal(size=(7, 4)).astype(dtype)
    folder, parts = tmp_path / "artifact", (rows[:3], rows[3:])
    folder.mkdir()
    for number, part in enumerate(parts):
        np.save(tmp_path / f"{number}.npy", 5 * part)
    write_links(folder, [tmp_path / "0.npy", tmp_path / "1.npy"])
    places = [(shard, row) for shard, part in enumerate(parts) for row in range(len(part))]
    columns = {"image_id": [f"i{n}" for n in range(7)], "shard": [s for s, _ in places], "row": [r for _, r in places]}
    write_index(folder, [pa.table(columns | {"pixels": [bytes(16)] * 7}, schema=FEATURE_INDEX)])
    store = FeatureStore(folder)
    wanted = np.array([6, 0, 4, 4])
    expected = rows[wanted].astype(np.float64) / np.linalg.norm(rows[wanted].astype(np.float64), axis=1, keepdims=True)
    assert store.linked and store.ids_of(wanted) == ["i6", "i0", "i4", "i4"]
    assert np.abs(store.view()[wanted] - expected).max() < 1e-3
    np.save(tmp_path / "1.npy", rows[:2])
    with pytest.raises(ArtifactError, match=r"1\.npy has 2 rows, not 4"):
        store.view()
