"""Indexes in the formats that other tools write; what makes stored image embeddings invalid, and what does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from paraclip_core.clip.encode import encode_images
from paraclip_core.clip.index import READERS, ImageIndex, read_index
from paraclip_core.clip.model import ClipModel, image_encoder_hash
from paraclip_core.clip.verify_index import check_encoders, check_features, check_images
from paraclip_core.errors import InputError, ModelError
from tests.kit.encoders import VISION

ROWS = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
NAMES = [f"photo {row}.jpg" for row in range(7)]


def same(index: ImageIndex) -> bool:
    """Whether it has the directions of the rows."""
    rows = np.asarray(index.features[np.arange(7)], np.float32)
    units = [some / np.linalg.norm(some, axis=1, keepdims=True) for some in (rows, ROWS)]
    return bool(np.allclose(*units, atol=2e-3))


def test_npy_and_parquet_and_their_ids(tmp_path: Path) -> None:
    for dtype in (np.float16, np.float64):
        np.save(tmp_path / "index.npy", ROWS.astype(dtype))
        index = read_index(tmp_path / "index.npy")
        assert same(index) and list(index.ids) == [str(row) for row in range(7)] and not index.named
    np.save(tmp_path / "index.npy", ROWS)
    (tmp_path / "ids.txt").write_text("\n".join(NAMES) + "\n")
    (tmp_path / "ids.json").write_text(json.dumps(NAMES))
    (tmp_path / "windows.txt").write_text("\n".join(NAMES), "utf-8-sig")
    pq.write_table(pa.table({"width": [1] * 7, "image_id": NAMES}), tmp_path / "ids.parquet")
    for name in ("ids.txt", "ids.json", "windows.txt", "ids.parquet"):
        index = read_index(tmp_path / "index.npy", tmp_path / name)
        assert index.ids == NAMES and index.named
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


def test_a_folder_of_parquet_as_spark_writes_it(tmp_path: Path) -> None:
    rows = pa.table({"image_id": NAMES, "embedding": ROWS.tolist()})
    for part, stop in enumerate((slice(0, 0), slice(0, 3), slice(3, 7))):
        pq.write_table(rows.slice(stop.start, stop.stop - stop.start), tmp_path / f"part-{part:05}.parquet")
    (tmp_path / "README.md").write_text("# Vectors")
    index = read_index(tmp_path)
    assert same(index) and index.ids == NAMES


def test_what_is_no_index_and_ids_that_do_not_fit_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", ROWS.reshape(-1))
    np.save(tmp_path / "whole.npy", ROWS.astype(np.int64))
    np.save(tmp_path / "no-rows.npy", ROWS[:0])
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY nothing")
    (tmp_path / "index.bin").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    uneven = pa.array([[1.0, 2.0], [1.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"embedding": uneven}), tmp_path / "uneven.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "none.parquet")
    without = pa.table({"embedding": pa.array([None, [1.0, 2.0]], pa.list_(pa.float32()))})
    pq.write_table(without, tmp_path / "null.parquet")
    pq.write_table(without[:0], tmp_path / "no-rows.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "null.parquet").read_bytes()[:200])
    expected = {
        "gone.npy": "does not exist",
        "flat.npy": r"expected floating-point features \[n, d\]",
        "whole.npy": "int64",
        "no-rows.npy": "expected a row for each image",
        "broken.npy": "cannot read features",
        "index.bin": f"expected one of {', '.join(READERS)}".replace(".", r"\."),
        "empty": "contains neither .npy nor Parquet",
        "uneven.parquet": "row 1 of 'embedding' is not a vector of",
        "none.parquet": "expected one column of vectors",
        "null.parquet": "row 0 of 'embedding' is not a vector of 2",
        "no-rows.parquet": "expected a row for each image",
        "cut.parquet": "damaged or cut short",
    }
    for name, message in expected.items():
        with pytest.raises(InputError, match=message):
            read_index(tmp_path / name)
    np.save(tmp_path / "index.npy", ROWS)
    (tmp_path / "ids.txt").write_text("one\ntwo\n")
    (tmp_path / "ids.json").write_text('{"a": 1}')
    expected = {
        "ids.txt": r"names 2 images, but .* has features of 7",
        "ids.json": "does not hold a list",
        "gone.txt": "does not exist",
    }
    for name, message in expected.items():
        with pytest.raises(InputError, match=message):
            read_index(tmp_path / "index.npy", tmp_path / name)


Tiny = Callable[..., ClipModel]


def pictures(count: int = 3) -> list[Image.Image]:
    values = np.random.RandomState(0).randint(0, 256, (count, 40, 40, 3)).astype(np.uint8)
    return [Image.fromarray(picture) for picture in values]


def test_another_image_encoder_or_preprocessing_makes_an_index_invalid(tiny: Tiny) -> None:
    base, changed, other = tiny(), tiny(), tiny()
    with torch.no_grad():
        for parameter in changed.visual.parameters():
            parameter.add_(1)
    encoder, preprocess = check_encoders(base, changed)
    assert not encoder.valid and preprocess.valid
    check, _ = check_images(base, changed, pictures(), list("abc"))
    assert not check.valid and check.differences[0].startswith("a: by up to") and "0 of 3" in check.detail
    other.preprocess_cfg["interpolation"] = "bilinear"
    same, preprocess = check_encoders(base, other)
    assert same.valid and not preprocess.valid
    check, _ = check_images(base, tiny(embed_dim=16), pictures(), list("abc"))
    assert not check.valid and "32 and 16 dimensions" in check.detail


@pytest.mark.parametrize("change", [{"quick_gelu": True}, {"vision_cfg": {"head_width": 32}}])
def test_the_same_weights_with_another_activation_or_other_heads(tiny: Tiny, change: dict[str, Any]) -> None:
    base, other = tiny(), tiny(**{**change, "vision_cfg": {**VISION, **change.get("vision_cfg", {})}})
    other.model.load_state_dict(base.model.state_dict())
    assert image_encoder_hash(base) == image_encoder_hash(other)
    encoder, preprocess = check_encoders(base, other)
    assert not encoder.valid and preprocess.valid and "compute differently" in encoder.detail


def test_stored_features(tiny: Tiny) -> None:
    clip = tiny()
    computed = encode_images(clip, pictures())
    names = list("abc")
    assert check_features(computed, computed, names).valid
    assert check_features(computed.astype(np.float32) * 5, computed, names).valid, "length does not matter"
    wrong = computed.astype(np.float32)
    wrong[1, 4] += 0.05
    check = check_features(wrong, computed, names)
    assert not check.valid and len(check.differences) == 1 and check.differences[0].startswith("b: ")
    wrong[2, 0] = np.nan
    assert len(check_features(wrong, computed, names).differences) == 2
    with pytest.raises(ModelError, match="stored features are"):
        check_features(computed[:, :8], computed, names)
