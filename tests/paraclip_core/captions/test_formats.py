"""Which format a file has, and a reader of the user's own."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from paraclip_core.captions.formats import detect, own_reader_source, read
from paraclip_core.captions.options import DataOptions, SourceOptions
from paraclip_core.captions.pipeline import CaptionPipeline
from paraclip_core.captions.sources import list_files
from paraclip_core.errors import ConfigError, InputError

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


SOURCE = """
from paraclip_core.captions.rows import Batcher
from paraclip_core.errors import InputError

def read(path, options):
    batcher = Batcher()
    for number, line in enumerate(path.read_text().splitlines(), 1):
        image, _, caption = line.partition(" = ")
        if not caption:
            batcher.reject(number, "missing_field", "no caption behind the image")
        elif image == "end":
            raise InputError(f"{path} ends early")
        else:
            batcher.add(number, caption, image, f"{image}.png", options.split)
    yield from batcher.rest()

def other():
    pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_reader_of_lists.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_a_reader_of_ones_own(own: Path) -> None:
    (own / "a.list").write_text("1 = a dog runs\n2\n3 = a cat sits &amp; waits\n")
    (own / "b.csv").write_text("4 = a fox jumps\nend = of it\n")
    (own / ".hidden").write_text("5 = a cow\n")
    source = SourceOptions(path=".", format="my_reader_of_lists:read", images="pictures.tar", split="val")
    data = DataOptions(sources=(source,), on_error="skip")
    files = list_files(own, data.sources)
    assert [(file.name, file.form, file.images) for file in files] == [
        ("a.list", "my_reader_of_lists:read", "pictures.tar"), ("b.csv", "my_reader_of_lists:read", "pictures.tar")
    ]  # fmt: skip
    pipeline = CaptionPipeline(data, files)
    outcomes = [outcome for file in files for outcome in pipeline.run(file)]
    rows = [row for outcome in outcomes for row in outcome.accepted.to_pylist()]
    assert [(row["image_id"], row["image_path"], row["caption"], row["split"], row["source_row"]) for row in rows] == [
        ("1", "1.png", "a dog runs", "val", 1), ("3", "3.png", "a cat sits & waits", "val", 3)
    ]  # fmt: skip
    rejects = [row for outcome in outcomes for row in outcome.rejects.to_pylist()]
    assert [(row["source"], row["source_row"], row["reason"], row["detail"]) for row in rejects] == [
        ("a.list", 2, "missing_field", "no caption behind the image"), ("b.csv", None, "unreadable", "b.csv ends early")
    ]  # fmt: skip
    assert own_reader_source(source.format) == SOURCE.encode()


@pytest.mark.parametrize("path", ["no_such_module:read", "my_reader_of_lists:nothing", "my_reader_of_lists:other"])
def test_a_reader_that_cannot_be_used_is_reported(own: Path, path: str) -> None:
    (own / "a.list").write_text("1 = a dog\n")
    with pytest.raises(ConfigError, match=rf"format={path} cannot be used: .*package\.module:function"):
        list(read(own / "a.list", SourceOptions(path="x", format=path), path))


def test_every_format_has_a_reader_and_any_other_is_reported() -> None:
    for name in ("excel", "a:", ":b", "a b:c"):
        with pytest.raises(
            ValidationError, match=r"is not a known format; expected auto, parquet, .* package\.module:function"
        ):
            SourceOptions(path="x", format=name)
