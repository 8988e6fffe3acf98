"""Which files stand behind a source."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paraclip_core.captions.options import SourceOptions
from paraclip_core.captions.sources import list_files
from paraclip_core.errors import ConfigError


def names(root: Path, **options: str) -> list[tuple[str, str, str | None]]:
    return [(f.name, f.form, f.images) for f in list_files(root, [SourceOptions.model_validate(options)])]


def test_a_folder(tmp_path: Path) -> None:
    files = {
        "b/00001.tar": "", "b/00001.parquet": "", "b/00001_stats.json": "{}", "a.csv": "", "z.jsonl.gz": "",
        "README.txt": "", "LICENSE": "", "notes.txt": "", ".hidden/x.csv": "", "b/pic.jpg": "", "images.tar": "",
        "images/x.csv": "",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(text)
    assert names(tmp_path, path="data", images="data/images.tar") == [
        ("data/a.csv", "csv", "data/images.tar"),
        ("data/b/00001.tar", "webdataset", "data/images.tar"),
        ("data/images/x.csv", "csv", "data/images.tar"),
        ("data/z.jsonl.gz", "jsonl", "data/images.tar"),
    ]
    assert ("data/images/x.csv", "csv", "data/images") not in names(tmp_path, path="data", images="data/images")
    assert names(tmp_path, path="data", format="text")[0][0] == "data/README.txt"
    assert names(tmp_path, path="data", format="parquet") == [("data/b/00001.parquet", "parquet", None)]


def test_parquet_that_holds_its_images(tmp_path: Path) -> None:
    inside = pa.table({"image": pa.array([b"x"]), "caption": ["a dog"]})
    for name in ("train-00000-of-00001", "validation-00000-of-00002-0f3a", "minitrain-00000-of-00001", "test"):
        pq.write_table(inside, tmp_path / f"{name}.parquet")
    pq.write_table(pa.table({"caption": ["a dog"]}), tmp_path / "test-00000-of-00001.parquet")
    files = {file.name: file for file in list_files(tmp_path, [SourceOptions(path=".")])}
    assert {name: (file.images, file.split) for name, file in files.items()} == {
        "minitrain-00000-of-00001.parquet": ("minitrain-00000-of-00001.parquet", "train"),
        "test-00000-of-00001.parquet": (None, "train"),
        "test.parquet": ("test.parquet", "train"),
        "train-00000-of-00001.parquet": ("train-00000-of-00001.parquet", "train"),
        "validation-00000-of-00002-0f3a.parquet": ("validation-00000-of-00002-0f3a.parquet", "val"),
    }
    (named,) = list_files(tmp_path, [SourceOptions(path="validation-00000-of-00002-0f3a.parquet", split="test")])
    assert named.split == "test"
    assert names(tmp_path, path="test.parquet", images="pics") == [("test.parquet", "parquet", "pics")]


def test_a_root_among_the_captions_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "runs/artifacts").mkdir(parents=True)
    for name in ("a.csv", "runs/b.jsonl", "runs/artifacts/c.parquet", "runs/d.txt"):
        (tmp_path / name).touch()
    source = SourceOptions(path=".")
    assert [file.name for file in list_files(tmp_path, [source], tmp_path / "runs")] == ["a.csv"]
    inside = SourceOptions(path="runs/artifacts")
    assert len(list_files(tmp_path, [inside], tmp_path / "runs")) == 1, "what is named itself is read"


def test_missing_paths_and_empty_folders_stand_for_themselves(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("nope.csv", "empty"):
        assert names(tmp_path, path=name) == [(name, "unknown", None)]
    with pytest.raises(ConfigError, match=r"data\.sources is empty"):
        list_files(tmp_path, [])
    # Texts are read only where there is nothing else.
    for name in ("b.txt", "a.txt", "readme.txt", "README.txt", "LICENSE.txt", "LICENCE.txt", "CITATION.txt"):
        (tmp_path / name).write_text("a dog")
    assert names(tmp_path, path=".") == [("a.txt", "text", None), ("b.txt", "text", None)]
