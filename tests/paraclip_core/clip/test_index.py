"""Indexes in the formats that other tools write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paraclip_core.clip.index import READERS, ImageIndex, read_index
from paraclip_core.errors import InputError

ROWS = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
NAMES = [f"photo {row}.jpg" for row in range(7)]
EVERY = np.arange(7)


def directions(index: ImageIndex) -> np.ndarray:
    rows = np.asarray(index.features[EVERY], np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def same(index: ImageIndex) -> bool:
    return bool(np.allclose(directions(index), ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True), atol=2e-3))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy_with_numbers_for_ids(tmp_path: Path, dtype: type) -> None:
    np.save(tmp_path / "index.npy", ROWS.astype(dtype))
    index = read_index(tmp_path / "index.npy")
    assert same(index) and list(index.ids) == [str(row) for row in range(7)] and not index.named


def test_ids_as_text_json_or_parquet(tmp_path: Path) -> None:
    np.save(tmp_path / "index.npy", ROWS)
    (tmp_path / "ids.txt").write_text("\n".join(NAMES) + "\n")
    (tmp_path / "ids.json").write_text(json.dumps(NAMES))
    pq.write_table(pa.table({"width": [1] * 7, "image_id": NAMES}), tmp_path / "ids.parquet")
    for name in ("ids.txt", "ids.json", "ids.parquet"):
        index = read_index(tmp_path / "index.npy", tmp_path / name)
        assert index.ids == NAMES and index.named


def test_parquet_with_a_column_of_vectors(tmp_path: Path) -> None:
    for kind in (pa.list_(pa.float32()), pa.list_(pa.float32(), 4), pa.large_list(pa.float64())):
        vectors = pa.array(ROWS.tolist(), kind)
        pq.write_table(pa.table({"path": NAMES, "clip": vectors}), tmp_path / "index.parquet", row_group_size=3)
        index = read_index(tmp_path / "index.parquet")
        assert same(index) and index.ids == NAMES


def test_a_folder_of_clip_retrieval(tmp_path: Path) -> None:
    (tmp_path / "img_emb").mkdir()
    (tmp_path / "metadata").mkdir()
    for shard, rows in ((2, slice(0, 3)), (10, slice(3, 7))):
        np.save(tmp_path / "img_emb" / f"img_emb_{shard}.npy", ROWS[rows].astype(np.float16))
        names = pa.table({"caption": ["x"] * len(NAMES[rows]), "image_path": NAMES[rows]})
        pq.write_table(names, tmp_path / "metadata" / f"metadata_{shard}.parquet")
    index = read_index(tmp_path)
    assert same(index) and index.ids == NAMES
    assert np.array_equal(np.asarray(index.features[np.array([4, 0])]), ROWS[[4, 0]].astype(np.float16))


def test_what_is_no_index_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", ROWS.reshape(-1))
    np.save(tmp_path / "whole.npy", ROWS.astype(np.int64))
    np.save(tmp_path / "no-rows.npy", ROWS[:0])
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY nothing")
    (tmp_path / "index.bin").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    uneven = pa.array([[1.0, 2.0], [1.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"embedding": uneven}), tmp_path / "uneven.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "none.parquet")
    expected = {
        "gone.npy": "does not exist",
        "flat.npy": r"expected floating-point features \[n, d\]",
        "whole.npy": "int64",
        "no-rows.npy": "expected a row for each image",
        "broken.npy": "cannot read features",
        "index.bin": f"expected one of {', '.join(READERS)}".replace(".", r"\."),
        "empty": "holds neither .npy nor Parquet",
        "uneven.parquet": "row 1 of 'embedding' is no vector of",
        "none.parquet": "expected one column of vectors",
    }
    for name, message in expected.items():
        with pytest.raises(InputError, match=message):
            read_index(tmp_path / name)


def test_ids_that_do_not_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "index.npy", ROWS)
    (tmp_path / "ids.txt").write_text("one\ntwo\n")
    (tmp_path / "ids.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match=r"names 2 images, but .* has features of 7"):
        read_index(tmp_path / "index.npy", tmp_path / "ids.txt")
    with pytest.raises(InputError, match="holds no list"):
        read_index(tmp_path / "index.npy", tmp_path / "ids.json")
    with pytest.raises(InputError, match="does not exist"):
        read_index(tmp_path / "index.npy", tmp_path / "gone.txt")
