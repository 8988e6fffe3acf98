"""JSON records: an object a line, or an array of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paraclip_core.captions.readers.json import read_coco, read_jsonl, read_karpathy
from paraclip_core.captions.rows import RowBatch
from paraclip_core.config import ColumnNames, SourceOptions
from paraclip_core.errors import InputError

OPTIONS = SourceOptions(path="x")


def write(folder: Path, data: bytes | str) -> Path:
    path = folder / "rows"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def first(batches: Iterator[RowBatch]) -> RowBatch:
    return next(batches, RowBatch())


def rejects(batch: RowBatch) -> list[tuple[int | None, str]]:
    return [(reject.row, reject.reason) for reject in batch.rejects]


def test_jsonl(tmp_path: Path) -> None:
    lines = [
        '{"image_id": "a", "image": "images/a.png", "caption": "a dog", "split": "val", "licence": "CC0"}',
        "",
        '{"image": "b.jpg", "captions": ["a cat", "one cat", 5]}',
        '{"image": 7, "text": "a fox"}',
        '{"image": "c.jpg"}',
        '{"image": [], "text": "a cow"}',
        '["no", "object"]',
        "{broken",
        '{"caption": null}',
    ]
    batch = first(read_jsonl(write(tmp_path, "\n".join(lines)), OPTIONS))
    assert batch.captions == ["a dog", "a cat", "one cat", "a fox"]
    assert batch.image_ids == ["a", "b.jpg", "b.jpg", "7"]
    assert batch.image_paths == ["images/a.png", "b.jpg", "b.jpg", "7"]
    assert batch.rows == [1, 3, 3, 4]
    assert (batch.splits[0], batch.licences[0]) == ("val", "CC0")
    assert rejects(batch) == [
        (3, "wrong_type"), (5, "missing_field"), (6, "wrong_type"), (7, "wrong_type"), (8, "bad_json"),
        (9, "missing_field"),
    ]  # fmt: skip


def test_jsonl_with_captions_in_several_fields(tmp_path: Path) -> None:
    path = write(
        tmp_path, '{"a": "a dog", "b": ["one dog"]}\n{"b": "a cat"}\n{"c": "a fox"}\n{"a": "a cow", "b": null}'
    )
    batch = first(read_jsonl(path, SourceOptions(path="x", columns=ColumnNames(caption=("a", "b")))))
    assert batch.captions == ["a dog", "one dog", "a cat", "a cow"]
    assert (batch.rows, rejects(batch)) == ([1, 1, 2, 4], [(3, "missing_field"), (4, "missing_field")])


def test_jsonl_with_other_fields_and_an_array_of_objects(tmp_path: Path) -> None:
    path = write(tmp_path, '{"alt": "a dog", "src": "1"}\n')
    for columns in (ColumnNames(), ColumnNames(caption="txt")):
        batch = first(read_jsonl(path, SourceOptions(path="x", columns=columns)))
        assert rejects(batch) == [(1, "missing_field")] and batch.rejects[0].detail.endswith("alt, src")
    batch = first(read_jsonl(write(tmp_path, ' [{"image": "1", "caption": "a dog"},\n {"caption": "x"}]'), OPTIONS))
    assert (batch.captions, batch.rows) == (["a dog", "x"], [0, 1])


def joined(batches: list[RowBatch]) -> RowBatch:
    whole = RowBatch()
    for batch in batches:
        for name in RowBatch.__slots__:
            getattr(whole, name).extend(getattr(batch, name))
    return whole


COCO = {
    "licenses": [{"id": 3, "name": "Attribution License"}],
    "images": [{"id": 42, "file_name": "000042.jpg", "license": 3}, {"id": 43, "file_name": "000043.jpg"}],
    "annotations": [
        {"image_id": 42, "id": 1, "caption": "a dog\n"},
        {"image_id": 43, "id": 2, "caption": "a cat"},
        {"image_id": 99, "id": 3, "caption": "a ghost"},
        {"image_id": 43, "id": 4},
        {"image_id": 43, "id": 5, "caption": 5},
        "nonsense",
    ],
}


def test_coco(tmp_path: Path) -> None:
    batch = joined(list(read_coco(write(tmp_path, json.dumps(COCO)), OPTIONS)))
    assert batch.captions == ["a dog\n", "a cat"]
    assert batch.image_ids == ["42", "43"]
    assert batch.image_paths == ["000042.jpg", "000043.jpg"]
    assert batch.licences == ["Attribution License", None]
    assert rejects(batch) == [(2, "missing_field"), (3, "missing_field"), (4, "wrong_type"), (5, "wrong_type")]


def test_real_files(data_root: Path) -> None:
    batch = joined(list(read_coco(data_root / "coco" / "captions_val2017.json", OPTIONS)))
    assert len(batch) == 25_014
    assert len(set(batch.image_ids)) == 5000
    assert not batch.rejects
    batch = joined(list(read_karpathy(data_root / "flickr8k" / "dataset_flickr8k.json", OPTIONS)))
    assert len(batch) == 35_000
    assert batch.rows == list(range(35_000))
    assert {split: batch.splits.count(split) for split in set(batch.splits)} == {"train": 30_000, "val": 5000}


KARPATHY = {
    "dataset": "coco",
    "images": [
        {"filepath": "val2014", "filename": "1.jpg", "split": "restval", "sentences": [{"raw": "a dog"}, {"raw": "x"}]},
        {"filename": "2.jpg", "split": "test", "sentences": [{"tokens": ["no", "raw"]}, {"raw": "a cat"}]},
        {"split": "test", "sentences": [{"raw": "nameless"}]},
        {"filename": "3.jpg"},
    ],
}


def test_karpathy_with_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    batch = joined(list(read_karpathy(write(tmp_path, json.dumps(KARPATHY)), OPTIONS)))
    assert batch.captions == ["a dog", "x", "a cat"]
    assert batch.image_ids == ["1.jpg", "1.jpg", "2.jpg"]
    assert batch.image_paths == ["val2014/1.jpg", "val2014/1.jpg", "2.jpg"]
    assert batch.splits == ["restval", "restval", "test"]
    assert batch.rows == [0, 1, 3]
    assert rejects(batch) == [(2, "missing_field"), (4, "missing_field"), (5, "missing_field")]
    path = write(tmp_path, b'{"images": [{"filename": "1.jpg", "sentences": [{"raw": "caf\xe9"}, {"raw": "a dog"}]}]}')
    assert joined(list(read_karpathy(path, OPTIONS))).captions == ["caf\udce9", "a dog"]


@pytest.mark.parametrize("reader", [read_coco, read_karpathy])
@pytest.mark.parametrize(
    "text", ["", '{"images": [{"id"', '{"info": {}}', "[" * 100_000, '{"images": [{"id": ' + "9" * 5000]
)
def test_bad_files(tmp_path: Path, reader: Any, text: str) -> None:
    with pytest.raises(InputError, match=r"rows is not"):
        list(reader(write(tmp_path, text), OPTIONS))
