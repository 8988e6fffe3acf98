"""COCO's and Karpathy's annotation files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paraclip_core.captions.readers.coco import read_coco, read_karpathy
from paraclip_core.captions.rows import RowBatch
from paraclip_core.config import SourceOptions
from paraclip_core.errors import InputError

OPTIONS = SourceOptions(path="x")


def write(folder: Path, document: Any) -> Path:
    path = folder / "a.json"
    path.write_text(json.dumps(document))
    return path


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
    batch = joined(list(read_coco(write(tmp_path, COCO), OPTIONS)))
    assert batch.captions == ["a dog\n", "a cat"]
    assert batch.image_ids == ["42", "43"]
    assert batch.image_paths == ["000042.jpg", "000043.jpg"]
    assert batch.licences == ["Attribution License", None]
    assert [(reject.row, reject.reason) for reject in batch.rejects] == [
        (2, "missing_field"), (3, "missing_field"), (4, "wrong_type"), (5, "wrong_type")
    ]  # fmt: skip


def test_real_coco(data_root: Path) -> None:
    batch = joined(list(read_coco(data_root / "coco" / "captions_val2017.json", OPTIONS)))
    assert len(batch) == 25_014
    assert len(set(batch.image_ids)) == 5000
    assert not batch.rejects


KARPATHY = {
    "dataset": "coco",
    "images": [
        {"filepath": "val2014", "filename": "1.jpg", "split": "restval", "sentences": [{"raw": "a dog"}, {"raw": "x"}]},
        {"filename": "2.jpg", "split": "test", "sentences": [{"tokens": ["no", "raw"]}, {"raw": "a cat"}]},
        {"split": "test", "sentences": [{"raw": "nameless"}]},
        {"filename": "3.jpg"},
    ],
}


def test_karpathy(tmp_path: Path) -> None:
    batch = joined(list(read_karpathy(write(tmp_path, KARPATHY), OPTIONS)))
    assert batch.captions == ["a dog", "x", "a cat"]
    assert batch.image_ids == ["1.jpg", "1.jpg", "2.jpg"]
    assert batch.image_paths == ["val2014/1.jpg", "val2014/1.jpg", "2.jpg"]
    assert batch.splits == ["restval", "restval", "test"]
    assert batch.rows == [0, 1, 3]
    assert [(reject.row, reject.reason) for reject in batch.rejects] == [
        (2, "missing_field"), (4, "missing_field"), (5, "missing_field")
    ]  # fmt: skip


def test_real_karpathy(data_root: Path) -> None:
    batch = joined(list(read_karpathy(data_root / "flickr8k" / "dataset_flickr8k.json", OPTIONS)))
    assert len(batch) == 35_000
    assert batch.rows == list(range(35_000))
    assert {split: batch.splits.count(split) for split in set(batch.splits)} == {"train": 30_000, "val": 5000}


@pytest.mark.parametrize("reader", [read_coco, read_karpathy])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON .* cut short"),
        ('{"images": [{"id"', "not valid JSON .* line 1, column"),
        ("[1, 2]", "holds a list, expected an object"),
        ('{"info": {}}', "has no list '.*' so it is not in .* format; its fields are info|has no list"),
        ("[" * 100_000, "nested too deeply|not valid JSON"),
        ('{"images": [{"id": ' + "9" * 5000, "not valid JSON .*digits"),
        ('{"images": [{"id": 1}], "annotations": [{"bbox": []}]}', "no caption in them|no sentences in them"),
    ],
)
def test_bad_files(tmp_path: Path, reader: Any, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        list(reader(path, OPTIONS))


def test_bytes_that_are_not_utf8_cost_one_row(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"images": [{"filename": "1.jpg", "sentences": [{"raw": "caf\xe9"}, {"raw": "a dog"}]}]}')
    assert joined(list(read_karpathy(path, OPTIONS))).captions == ["caf\udce9", "a dog"]
