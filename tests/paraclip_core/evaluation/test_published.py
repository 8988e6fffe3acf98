"""Captioned images in their published formats, real ones where they are at hand."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest
from fake_encoder import WordEncoder

from paraclip_core.config import BenchmarkOptions
from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation import published
from paraclip_core.evaluation.tasks import prepare, source_files


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
    encoder, twin, other = WordEncoder(), WordEncoder(), WordEncoder(tower="other")
    for one in (encoder, twin, other):
        pool.features(one)
    assert [one.encoded_images for one in (encoder, twin, other)] == [33, 0, 33]


def test_the_test_split_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "dataset_x.json"
    path.write_text(karpathy("train", "val", "test", "restval"))
    assert published.load_captions(path).image_ids == ["2.jpg", "2.jpg"]
    assert published.load_captions(path, "val").captions == ["dog 1", "cat"]
    path.write_text(karpathy("train"))
    with pytest.raises(BenchmarkError, match=r"no captions of split 'test'; its splits: \['train'\]"):
        published.load_captions(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no list `images`"),
        ('{"images": [3]}', "images entry 1: a int"),
        ('{"images": [{"filename": "a.jpg"}]}', "images entry 1: no list `sentences`"),
        ('{"images": [{"id": 1}], "annotations": []}', "row 1: no field file_name"),
        ('{"images": [{"id": [1], "file_name": "a"}], "annotations": []}', r"images entry 1: id is \[1\], expected"),
        (
            '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": {}, "caption": "x"}]}',
            "annotations entry 1: image_id is {}, expected a number or a text",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 2, "caption": "x"}]}',
            "annotations entry 1: image_id 2 is unknown",
        ),
        (
            '{"images": [{"filename": "a.jpg", "sentences": [{"raw": "a \\ud83d"}]}]}',
            "row 1: raw is .* half a character",
        ),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "captions.json"
    path.write_text(text)
    with pytest.raises(BenchmarkError, match=message) as caught:
        published.load_captions(path)
    assert str(path) in str(caught.value)


def test_a_folder_of_coco_captions_gives_pairs(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(10):
        (tmp_path / "images" / f"{number}.jpg").touch()
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(10)]
    captions = [{"image_id": n, "caption": f"{word} {n}"} for n in range(10) for word in ("a dog", "a hound")]
    (tmp_path / "captions_val.json").write_text(json.dumps({"images": images, "annotations": captions}))
    benchmark = BenchmarkOptions(name="coco", kind="paraphrased_retrieval", path=".")
    assert prepare(benchmark, tmp_path).kind == "paraphrased_retrieval"
    (tmp_path / "rewordings.jsonl").write_text('{"image": "0.jpg"}')
    with pytest.raises(BenchmarkError, match=r"rewordings\.jsonl, row 1: no field caption"):
        prepare(benchmark, tmp_path)


def test_a_table_of_captions_is_told_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_text("caption,image\na dog,a.jpg\n")
    with pytest.raises(BenchmarkError, match=r"captions\.csv: expected captions as .* as \.jsonl with image and"):
        published.load_captions(path)


def test_images_beside_the_captions(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"image": "a.jpg", "caption": "x"}\n{"image": "b", "captions": ["y", "z"], "split": "test"}\n')
    ids = published.load_captions(path).image_ids
    assert ids == ["a.jpg", "b", "b"]
    with pytest.raises(BenchmarkError, match="no images beside"):
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
    assert published.beside(path) == [tmp_path / "images" / "a.jpg", tmp_path / "images" / "b.png", path]


def test_an_image_is_not_taken_for_another_of_its_name(tmp_path: Path) -> None:
    for name in ("a.jpg", "small/a.jpg", "x/b.png", "x/b.json", "x/c.jpg", "y/c.jpg", "y/d.jpg", "y/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    known = {"a.jpg": "a.jpg", "a": "a.jpg", "b": "x/b.png", "y/c.jpg": "y/c.jpg", "d.png": "y/d.png"}
    assert published.image_names(tmp_path, [*known, "e"]) == known
    for image_id, reason in (("c.jpg", r"x/c\.jpg or y/c\.jpg"), ("d", r"y/d\.jpg or y/d\.png")):
        with pytest.raises(BenchmarkError, match=f"image '{image_id}' may be {reason}"):
            published.image_names(tmp_path, [image_id])


def test_what_else_lies_beside_loose_images_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "rewordings.jsonl"
    log = tmp_path / "runs" / "logs" / "evaluate.log"
    log.parent.mkdir(parents=True)
    for file in (path, log, tmp_path / "a.JPG", tmp_path / "more.tif"):
        file.touch()
    assert published.images_beside(path) == tmp_path
    assert published.beside(path) == [tmp_path / "a.JPG", tmp_path / "more.tif", path]


def test_a_folder_with_several_candidates(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        (tmp_path / name).touch()
    with pytest.raises(BenchmarkError, match=r"found a\.json, b\.json"):
        published.captions_file(tmp_path)
    (tmp_path / "dataset_c.json").touch()
    assert published.captions_file(tmp_path).name == "dataset_c.json"


@pytest.mark.parametrize("kind", ["sts", "retrieval", "paraphrased_retrieval"])
def test_a_pipe_is_told_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "pairs.parquet")
    benchmark = BenchmarkOptions.model_validate({"name": "b", "kind": kind, "path": "pairs.parquet"})
    with pytest.raises(BenchmarkError, match=r"benchmark 'b': .*pairs\.parquet is a pipe or a device"):
        prepare(benchmark, tmp_path / "pairs.parquet")
    with pytest.raises(BenchmarkError, match=r"pairs\.parquet is a pipe or a device"):
        source_files(benchmark.kind, tmp_path / "pairs.parquet")
