"""Captions with their pictures inside of Parquet as a benchmark."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_encoder import WordEncoder
from PIL import Image

from paraclip_core.clip.images import ImageArchive
from paraclip_core.config import BenchmarkOptions
from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.parquet_captions import load_pictures, picture_files
from paraclip_core.evaluation.tasks import prepare, source_files

SHARD = "{}-0000{}-of-00002.parquet"


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (number, 0, 0)).save(file, "png")
    return file.getvalue()


def write(path: Path, numbers: list[int | None], **columns: Any) -> Path:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = pa.array([{"bytes": None if n is None else picture(n), "path": "1.png"} for n in numbers], kind)
    captions = {} if columns else {"caption_0": [f"a dog {n}" for n in numbers], "caption_1": ["a fox"] * len(numbers)}
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": image, **captions, **columns}), path)
    return path


def hub(folder: Path) -> Path:
    """As the hub lays out a data set: shards of each split in `data`, what it says of them beside."""
    for split, first in (("train", 0), ("validation", 50), ("test", 100)):
        for shard in range(2):
            start = first + 6 * shard
            write(folder / "data" / SHARD.format(split, shard), list(range(start, start + 6)))
    (folder / "dataset_infos.json").write_text("{}")
    return folder


class ReadingEncoder(WordEncoder):
    """Features are the pictures' red, as their files are read."""

    def images(self, archive: Path, names: Any) -> np.ndarray:
        self.encoded_images += len(names)
        with ImageArchive(archive) as images:
            return np.array([[images.open(name).getpixel((0, 0))[0]] for name in names], np.float16)  # pyright: ignore


@pytest.mark.parametrize(("split", "label", "first"), [(None, "test", 100), ("val", "val", 50), ("train", "train", 0)])
def test_shards_of_one_split_are_read(tmp_path: Path, split: str | None, label: str, first: int) -> None:
    files = picture_files(hub(tmp_path), split)
    named = "validation" if label == "val" else label
    assert [file.name for file in files] == [SHARD.format(named, 0), SHARD.format(named, 1)]
    assert source_files("retrieval", tmp_path, split) == source_files("paraphrased_retrieval", tmp_path, split) == files
    captions, pool = load_pictures(tmp_path, files, split)
    assert (captions.split, captions.captions[:3]) == (label, [f"a dog {first}", "a fox", f"a dog {first + 1}"])
    assert (len(captions.captions), len(pool.ids)) == (24, 12)
    encoder = ReadingEncoder()
    assert pool.features(encoder)[:, 0].tolist() == list(range(first, first + 12))
    pool.features(encoder)
    assert encoder.encoded_images == 12


def test_rows_tell_their_split_and_repeat_pictures(tmp_path: Path) -> None:
    columns = {"caption": ["a", "b", "c", " d "], "split": ["train", "test", "test", "test"]}
    path = write(tmp_path / "test-00000-of-00001.parquet", [0, 1, 2, 1], **columns)
    captions, pool = load_pictures(path, picture_files(path))
    assert (captions.captions, len(pool.ids), captions.split) == (["b", "c", "d"], 2, "test")
    assert captions.image_ids[0] == captions.image_ids[2]
    assert load_pictures(path, picture_files(path, "train"), "train")[0].captions == ["a"]


@pytest.mark.parametrize("kind", ["retrieval", "paraphrased_retrieval"])
@pytest.mark.parametrize("inside", [".", "data", "data/test-00000-of-00002.parquet"])
def test_both_kinds_measure_them(tmp_path: Path, kind: Any, inside: str) -> None:
    hub(tmp_path)
    write(tmp_path / "data" / SHARD.format("test", 0), list(range(100, 112)))
    measured = prepare(BenchmarkOptions(name="hub", kind=kind, path="."), tmp_path / inside).measure(WordEncoder())
    assert (measured.notes["split"], measured.notes["images"]) == ("test", 12)


def test_other_formats_go_first(tmp_path: Path) -> None:
    folder = hub(tmp_path)
    pairs = write(tmp_path / "more" / "a.parquet", [1], caption=["a"], rewording=["b"])
    assert picture_files(pairs) == [pairs] and picture_files(pairs, pairs=True) == []
    (folder / "pairs.tsv").touch()
    assert picture_files(folder) and not picture_files(folder, pairs=True)
    (folder / "captions.jsonl").touch()
    assert picture_files(folder) == []


def test_nulls_and_blanks_beside_other_captions_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [1, 2], caption_0=["a", None], caption_1=[" ", "b"])
    assert load_pictures(path, [path])[0].captions == ["a", "b"]


@pytest.mark.parametrize(
    ("numbers", "columns", "message"),
    [
        ([1, None], {"caption": ["a", "b"]}, r"a\.parquet, row 1 \(from 0\): no picture in column 'image'"),
        ([1, 2], {"caption": ["a", None]}, r"a\.parquet, row 1 \(from 0\): no caption, expected text"),
        ([1, 2], {"caption": ["a", " "]}, r"a\.parquet, row 1 \(from 0\): a blank caption, expected text"),
        ([None], {"caption": ["a"]}, r"'image' of .*a\.parquet holds no picture"),
        ([1], {"words": ["a"]}, r"a\.parquet has none of the columns caption, .*caption_1, …; .*'words' \(string\)"),
        ([1], {"caption": ["a"], "split": ["train"]}, r"no captions of split 'test'; its splits: \['train'\]"),
    ],
)
def test_what_cannot_be_measured_is_told(tmp_path: Path, numbers: list, columns: dict, message: str) -> None:
    path = write(tmp_path / "a.parquet", numbers, **columns)
    with pytest.raises(BenchmarkError, match=message):
        prepare(BenchmarkOptions(name="x", kind="retrieval"), path)


def test_bytes_that_are_not_utf8_are_told(tmp_path: Path) -> None:
    text = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a dog", b"caf\xe9"]).buffers())
    path = write(tmp_path / "a.parquet", [1, 2], caption=text)
    with pytest.raises(BenchmarkError, match=r"row 1 \(from 0\): caption 'caf.*' is not valid UTF-8"):
        load_pictures(path, [path])


def test_files_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    train = write(tmp_path / "d" / "train-00000-of-00001.parquet", [1])
    with pytest.raises(BenchmarkError, match=r"no captions of split 'test'; .* names: \['train'\]"):
        picture_files(tmp_path / "d")
    train.write_bytes(train.read_bytes()[:-9])
    with pytest.raises(BenchmarkError, match=r"train-00000-of-00001\.parquet .* damaged or cut short"):
        picture_files(tmp_path / "d")
    none = tmp_path / "none.parquet"
    pq.write_table(pa.table({"caption": ["a"], "image": ["1.jpg"]}), none)
    with pytest.raises(
        BenchmarkError, match=r"none\.parquet: expected captions as .* Parquet with a column of pictures"
    ):
        prepare(BenchmarkOptions(name="x", kind="retrieval"), none)
    both = tmp_path / "both.parquet"
    pq.write_table(pa.table({"a": [{"bytes": b"x"}], "b": [{"bytes": b"y"}], "caption": ["a"]}), both)
    with pytest.raises(BenchmarkError, match=r"both\.parquet: several columns .* call one of them 'image'"):
        picture_files(both)
