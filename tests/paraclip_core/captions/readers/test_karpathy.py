"""Karpathy's splits, and what is neither they nor COCO's captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paraclip_core.captions.readers.coco import read_coco
from paraclip_core.captions.readers.karpathy import read_karpathy
from paraclip_core.errors import InputError
from tests.kit.reading import OPTIONS, first, rejects, write

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
    batch = first(read_karpathy(write(tmp_path, json.dumps(KARPATHY)), OPTIONS))
    assert batch.captions == ["a dog", "x", "a cat"]
    assert batch.image_ids == ["1.jpg", "1.jpg", "2.jpg"]
    assert batch.image_paths == ["val2014/1.jpg", "val2014/1.jpg", "2.jpg"]
    assert batch.splits == ["restval", "restval", "test"]
    assert batch.rows == [0, 1, 3]
    assert rejects(batch) == [(2, "missing_field"), (4, "missing_field"), (5, "missing_field")]
    path = write(tmp_path, b'{"images": [{"filename": "1.jpg", "sentences": [{"raw": "caf\xe9"}, {"raw": "a dog"}]}]}')
    assert first(read_karpathy(path, OPTIONS)).captions == ["caf\udce9", "a dog"]


def test_a_real_file(data_root: Path) -> None:
    batches = list(read_karpathy(data_root / "flickr8k" / "dataset_flickr8k.json", OPTIONS))
    assert [row for batch in batches for row in batch.rows] == list(range(35_000))
    splits = [split for batch in batches for split in batch.splits]
    assert {split: splits.count(split) for split in set(splits)} == {"train": 30_000, "val": 5000}


@pytest.mark.parametrize("read", [read_karpathy, read_coco])
@pytest.mark.parametrize(
    "text", ["", '{"images": [{"id"', '{"info": {}}', "[" * 100_000, '{"images": [{"id": ' + "9" * 5000]
)
def test_what_is_no_document_of_either_kind_is_named(tmp_path: Path, read: Any, text: str) -> None:
    with pytest.raises(InputError, match=r"rows is not"):
        list(read(write(tmp_path, text), OPTIONS))
