"""COCO's captions."""

from __future__ import annotations

import json
from pathlib import Path

from paraclip_core.captions.readers.coco import read_coco
from tests.kit.reading import OPTIONS, first, rejects, write

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
    batch = first(read_coco(write(tmp_path, json.dumps(COCO)), OPTIONS))
    assert batch.captions == ["a dog\n", "a cat"]
    assert batch.image_ids == ["42", "43"]
    assert batch.image_paths == ["000042.jpg", "000043.jpg"]
    assert batch.licenses == ["Attribution License", None]
    assert rejects(batch) == [(2, "missing_field"), (3, "missing_field"), (4, "wrong_type"), (5, "wrong_type")]


def test_a_real_file(data_root: Path) -> None:
    batches = list(read_coco(data_root / "coco" / "captions_val2017.json", OPTIONS))
    assert sum(map(len, batches)) == 25_014
    assert len({image for batch in batches for image in batch.image_ids}) == 5000
    assert not any(batch.rejects for batch in batches)
