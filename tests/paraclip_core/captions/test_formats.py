"""Which format a file has."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from paraclip_core.captions.formats import detect
from paraclip_core.captions.options import SourceOptions
from paraclip_core.errors import InputError

KARPATHY = json.dumps({"images": [{"filename": "1.jpg", "sentences": [{"raw": "a dog"}]}]})
COCO = json.dumps({"info": {}, "annotations": [], "images": []})


@pytest.mark.parametrize(
    ("name", "text", "form"),
    [
        ("a.json", KARPATHY, "karpathy"),
        ("a.json", COCO, "coco"),
        ("a.json", '{"caption": "a", "images": []}\n{"caption": "b", "images": []}\n', "jsonl"),
        ("a.json", '[{"caption": "a"}]', "jsonl"),
        ("rows", KARPATHY, "karpathy"),
        ("a.csv.gz", "", "csv"),
        ("captions.txt", "", "text"),
        ("captions.txt", "\ufeffimage,caption\n1.jpg,a dog\n", "csv"),
        ("captions.txt", "caption;image\n", "csv"),
        ("captions.txt", "1.jpg#0\ta dog\n", "tsv"),
        ("captions.txt", "a dog\thttp://a/1.jpg\n", "tsv"),
        ("captions.txt", "a title, a caption\nimage,caption\n", "text"),
        ("log.txt", "query\tcount\nred dress\t7\n", "tsv"),
        ("log.txt", "time,query\n9:00,red dress\n", "csv"),
        ("log.txt", "query\nred dress\n", "text"),
    ],
)
def test_detection(tmp_path: Path, name: str, text: str, form: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert detect(path) == form


def test_detection_by_first_bytes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": ["a dog"]}), tmp_path / "rows")
    assert detect(tmp_path / "rows") == "parquet"
    (tmp_path / "what").write_text("a dog\n")
    with pytest.raises(InputError, match=r"cannot tell the format .* set data\.sources\[\]\.format"):
        detect(tmp_path / "what")
    for data, message in (
        (b'{"a":\n 1\n}', "cannot tell the format"),
        (b"\xef\xbb\xbf \n", r"x\.json is empty"),
        ("{}".encode("utf-16"), r"x\.json is UTF-16"),
    ):
        (tmp_path / "x.json").write_bytes(data)
        with pytest.raises(InputError, match=message):
            detect(tmp_path / "x.json")


def test_every_format_has_a_reader_and_any_other_is_reported() -> None:
    for name in ("excel", "module:read"):
        with pytest.raises(ValidationError, match=r"Input should be 'auto', 'parquet', "):
            SourceOptions(path="x", format=name)
