"""Captioned images in their published formats, real ones where they are at hand."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from paraclip_core.clip.images import ImageArchive
from paraclip_core.errors import BenchmarkError, InputError
from paraclip_core.evaluation import published
from paraclip_core.evaluation.benchmarks.paraphrased import pairs_files
from paraclip_core.evaluation.options import BenchmarkOptions
from paraclip_core.evaluation.prepare import prepare, source_files
from paraclip_core.evaluation.published import find_images, load_pictures, picture_files, pool_of
from tests.kit.fake_encoder import WordEncoder


def karpathy(*splits: str) -> str:
    images = [
        {"filename": f"{i}.jpg", "split": split, "sentences": [{"raw": f"dog {i}"}, {"raw": " cat "}, {"raw": ""}]}
        for i, split in enumerate(splits)
    ]
    return json.dumps({"dataset": "x", "images": images})


def test_real_karpathy_file(data_root: Path) -> None:
    folder = data_root / "flickr8k"
    file = published.captions_file(folder)
    captions = published.load_captions(file)
    assert (captions.split, len(captions.captions), len(set(captions.image_ids))) == ("val", 5000, 1000)
    assert published.images_beside(file) == published.images_beside(folder) == folder / "images_128.tar"
    names = published.image_names(folder / "images_128.tar", captions.image_ids)
    assert names[captions.image_ids[0]] == f"images/{captions.image_ids[0]}"
    assert len(names) == 1000


def test_real_coco_files(data_root: Path) -> None:
    captions = published.load_captions(data_root / "coco" / "captions_val2017.json")
    assert (captions.split, len(captions.captions), len(set(captions.image_ids))) == ("all", 25_014, 5000)
    mini = data_root / "coco" / "coco_val2017_mini.jsonl"
    captions = published.load_captions(mini)
    pool = published.pool_of(mini, captions.image_ids)
    assert len(pool.ids) == 33
    encoder, twin, other = WordEncoder(), WordEncoder(), WordEncoder(encoder="other")
    for one in (encoder, twin, other):
        pool.features(one)
    assert [one.encoded_images for one in (encoder, twin, other)] == [33, 0, 33]


def test_the_test_split_comes_first_and_several_candidates_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "dataset_x.json"
    path.write_text(karpathy("train", "val", "test", "restval"))
    assert published.load_captions(path).image_ids == ["2.jpg", "2.jpg"]
    assert published.load_captions(path, "val").captions == ["dog 1", "cat"]
    path.write_text(karpathy("train"))
    with pytest.raises(BenchmarkError, match=r"no captions of split 'test'; its splits: \['train'\]"):
        published.load_captions(path)
    path.unlink()
    for name in ("a.json", "b.json"):
        (tmp_path / name).touch()
    with pytest.raises(BenchmarkError, match=r"found a\.json, b\.json"):
        published.captions_file(tmp_path)
    path.touch()
    assert published.captions_file(tmp_path) == path


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"images": [3]}',
        '{"images": [{"sentids": [], "filename": "a.jpg", "sentences": [{}]}]}',
        '{"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "x"}]}',
        '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "caption": " "}]}',
        '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 2, "caption": "x"}]}',
        '{"images": [{"filename": "a.jpg", "sentences": [{"raw": "a \\ud83d"}]}]}',
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "captions.json"
    path.write_text(text)
    with pytest.raises(BenchmarkError, match=str(path)):
        published.load_captions(path)


def test_a_folder_of_coco_captions_gives_pairs(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(10):
        (tmp_path / "images" / f"{number}.jpg").touch()
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(10)]
    captions = [{"image_id": n, "caption": f"{word} {n}"} for n in range(10) for word in ("a dog", "a hound")]
    (tmp_path / "captions_val.json").write_text(json.dumps({"images": images, "annotations": captions}))
    benchmark = BenchmarkOptions(name="coco", kind="paraphrased_retrieval", path=".")
    assert prepare(benchmark, tmp_path).kind == "paraphrased_retrieval"
    (tmp_path / "paraphrased_queries.jsonl").write_text('{"image": "0.jpg"}')
    with pytest.raises(BenchmarkError, match=r"paraphrased_queries\.jsonl, row 1: caption is None"):
        prepare(benchmark, tmp_path)


def test_images_beside_the_captions(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"image": "a.jpg", "caption": "x"}\n{"image": "b", "captions": ["y", "z"], "split": "test"}\n')
    ids = published.load_captions(path).image_ids
    assert ids == ["a.jpg", "b", "b"]
    with pytest.raises(BenchmarkError, match="no images next to"):
        published.pool_of(path, ids)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.jpg").touch()
    with tarfile.open(tmp_path / "mine.tar", "w") as tar:
        tar.add(tmp_path / "deep" / "a.jpg", "deep/a.jpg")
    with pytest.raises(BenchmarkError, match=r"lacks 1 of 2 images of mine\.jsonl, first 'b'"):
        published.pool_of(path, ids)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "b.png").touch()
    (tmp_path / "images" / "a.jpg").touch()
    (tmp_path / "mine.tar").unlink()
    assert published.image_names(tmp_path / "images", ids) == {"a.jpg": "a.jpg", "b": "b.png"}
    assert published.files_in(path) == [tmp_path / "images" / "a.jpg", tmp_path / "images" / "b.png", path]


def test_an_image_is_not_taken_for_another_of_its_name(tmp_path: Path) -> None:
    for name in ("a.jpg", "small/a.jpg", "x/b.png", "x/b.json", "x/c.jpg", "y/c.jpg", "y/d.jpg", "y/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    places = {"a.jpg": "a.jpg", "a": "a.jpg", "b": "x/b.png", "y/c.jpg": "y/c.jpg", "d.png": "y/d.png"}
    assert published.image_names(tmp_path, [*places, "e"]) == places
    # Of several that lie equally deep the first is meant.
    assert published.image_names(tmp_path, ["c.jpg", "d"]) == {"c.jpg": "x/c.jpg", "d": "y/d.jpg"}


def test_a_folder_of_shards(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    for shard, names in enumerate((["a.png", "b.png"], ["c.png", "a.png"])):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for name in names:
                tar.add(tmp_path / "a.png", name)
    (tmp_path / "a.png").unlink()
    names = ("a.png", "b.png", "c.png")
    places = find_images(tmp_path, names)
    assert [places[name][0].name for name in names] == ["0.tar", "0.tar", "1.tar"]
    assert list(pool_of(tmp_path / "captions.json", names, tmp_path).ids) == list(names)
    (tmp_path / "x.tar").write_bytes(b"no tar")
    with pytest.raises(InputError, match=r"x\.tar"):
        find_images(tmp_path / "x.tar", names)


def test_what_else_lies_beside_loose_images_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "paraphrased_queries.jsonl"
    log = tmp_path / "runs" / "logs" / "evaluate.log"
    log.parent.mkdir(parents=True)
    for file in (path, log, tmp_path / "a.JPG", tmp_path / "more.tif"):
        file.touch()
    assert published.images_beside(path) == tmp_path
    assert published.files_in(path) == [tmp_path / "a.JPG", tmp_path / "more.tif", path]


@pytest.mark.parametrize("kind", ["sts", "retrieval", "paraphrased_retrieval"])
def test_a_pipe_is_reported_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "pairs.parquet")
    benchmark = BenchmarkOptions.model_validate({"name": "b", "kind": kind, "path": "pairs.parquet"})
    with pytest.raises(BenchmarkError, match=r"benchmark 'b': .*pairs\.parquet is a pipe or a device"):
        prepare(benchmark, tmp_path / "pairs.parquet")
    with pytest.raises(BenchmarkError, match=r"pairs\.parquet is a pipe or a device"):
        source_files(benchmark.kind, tmp_path / "pairs.parquet")


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

    def images(self, archive: Path, names: Any, boxes: Any = None) -> np.ndarray:
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
    path = write(tmp_path / "a.parquet", [1, 2], caption_0=["a", None], caption_1=[" ", "b"])
    assert load_pictures(path, [path])[0].captions == ["a", "b"]


@pytest.mark.parametrize("kind", ["retrieval", "paraphrased_retrieval"])
@pytest.mark.parametrize("inside", [".", "data/test-00000-of-00002.parquet"])
def test_both_kinds_measure_them(tmp_path: Path, kind: Any, inside: str) -> None:
    hub(tmp_path)
    write(tmp_path / "data" / SHARD.format("test", 0), list(range(100, 112)))
    measured = prepare(BenchmarkOptions(name="hub", kind=kind, path="."), tmp_path / inside).measure(WordEncoder())
    assert (measured.notes["split"], measured.notes["images"]) == ("test", 12)


def test_other_formats_go_first(tmp_path: Path) -> None:
    folder = hub(tmp_path)
    pairs = write(tmp_path / "more" / "a.parquet", [1], caption=["a"], paraphrased_query=["b"])
    assert picture_files(pairs) == pairs_files(pairs) == [pairs] and pairs_files(folder) == []
    (folder / "pairs.tsv").touch()
    assert picture_files(folder) and pairs_files(folder) == [folder / "pairs.tsv"]
    (folder / "captions.jsonl").touch()
    assert picture_files(folder) == []


@pytest.mark.parametrize(
    ("numbers", "columns"),
    [
        ([1, None], {"caption": ["a", "b"]}),
        ([1, 2], {"caption": ["a", " "]}),
        ([None], {"caption": ["a"]}),
        ([1], {"words": ["a"]}),
        ([1], {"caption": ["a"], "split": ["train"]}),
    ],
)
def test_what_cannot_be_measured_is_reported(tmp_path: Path, numbers: list, columns: dict) -> None:
    path = write(tmp_path / "a.parquet", numbers, **columns)
    with pytest.raises(BenchmarkError, match=r"benchmark 'x': .*a\.parquet"):
        prepare(BenchmarkOptions(name="x", kind="retrieval"), path)


def test_files_that_cannot_be_used_are_reported(tmp_path: Path) -> None:
    train = write(tmp_path / "d" / "train-00000-of-00001.parquet", [1])
    with pytest.raises(BenchmarkError, match=r"split 'test'; .* names: \['train'\]"):
        picture_files(tmp_path / "d")
    train.write_bytes(train.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"train-00000-of-00001\.parquet"):
        picture_files(tmp_path / "d")
    pq.write_table(pa.table({"caption": ["a"], "image": ["1.jpg"]}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("caption,image\na dog,a.jpg\n")
    for name in ("a.csv", "a.parquet"):
        with pytest.raises(BenchmarkError, match=rf"{name}: expected captions as .* a column of pictures"):
            prepare(BenchmarkOptions(name="x", kind="retrieval"), tmp_path / name)
