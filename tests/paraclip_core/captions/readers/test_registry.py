"""Formats by name, and readers of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from paraclip_core.captions.pipeline import CaptionPipeline
from paraclip_core.captions.readers.registry import READERS, own_reader_source, read
from paraclip_core.captions.sources import expand
from paraclip_core.config import FORMATS, DataOptions, SourceOptions
from paraclip_core.errors import ConfigError

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


def test_every_format_has_a_reader() -> None:
    assert ("auto", *READERS) == FORMATS


def test_a_reader_of_ones_own(own: Path) -> None:
    (own / "a.list").write_text("1 = a dog runs\n2\n3 = a cat sits &amp; waits\n")
    (own / "b.csv").write_text("4 = a fox jumps\nend = of it\n")
    (own / ".hidden").write_text("5 = a cow\n")
    source = SourceOptions(path=".", format="my_reader_of_lists:read", images="pictures.tar", split="val")
    data = DataOptions(sources=(source,), on_error="skip")
    files = expand(own, data.sources)
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
def test_a_reader_that_cannot_be_used_is_told(own: Path, path: str) -> None:
    (own / "a.list").write_text("1 = a dog\n")
    with pytest.raises(ConfigError, match=rf"format={path} cannot be used: .*package\.module:function"):
        list(read(own / "a.list", SourceOptions(path="x", format=path), path))


def test_a_format_that_is_none_is_told() -> None:
    for name in ("excel", "a:", ":b", "a b:c"):
        with pytest.raises(ValidationError, match=r"is no format; expected auto, parquet, .* package\.module:function"):
            SourceOptions(path="x", format=name)
