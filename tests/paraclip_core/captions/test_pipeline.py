"""From files to accepted and rejected rows."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraclip_core import tables
from paraclip_core.captions import rows as row_module
from paraclip_core.captions.columns import ColumnNames
from paraclip_core.captions.options import DataOptions, SourceOptions
from paraclip_core.captions.pipeline import CaptionPipeline
from paraclip_core.captions.sources import list_files
from paraclip_core.errors import ConfigError, InputError


def run(root: Path, *sources: SourceOptions, **options: Any) -> tuple[pa.Table, pa.Table, CaptionPipeline]:
    data = DataOptions(sources=sources, **options)
    files = list_files(root, data.sources)
    pipeline = CaptionPipeline(data, files)
    outcomes = [outcome for file in files for outcome in pipeline.run(file)]
    accepted = pa.Table.from_batches([outcome.accepted for outcome in outcomes], tables.CAPTIONS)
    rejects = pa.Table.from_batches([outcome.rejects for outcome in outcomes], tables.REJECTS)
    accepted.validate(full=True)
    rejects.validate(full=True)
    assert set(rejects["reason"].to_pylist()) <= set(re.findall(r"^``(\w+)``", str(row_module.__doc__), re.M))
    return accepted, rejects, pipeline


def jsonl(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def reasons(rejects: pa.Table) -> list[tuple[int | None, str]]:
    return list(zip(rejects["source_row"].to_pylist(), rejects["reason"].to_pylist(), strict=True))


def test_an_accepted_row(tmp_path: Path) -> None:
    raw = " A  caf\u00c3\u00a9 &amp; bar\n"
    jsonl(tmp_path / "a.jsonl", {"image_id": "i", "image": "p/i.jpg", "caption": raw})
    source = SourceOptions(path="a.jsonl", images="images.tar", split="validation", license="CC-BY-4.0")
    accepted, _, pipeline = run(tmp_path, source)
    row = {"caption_id": tables.text_hash("i", "A café & bar"), "caption": "A café & bar", "caption_raw": raw}
    row |= {"split": "val", "license": "CC-BY-4.0"}
    row |= {"image_id": "i", "image_path": "p/i.jpg", "images": "images.tar", "source": "a.jsonl", "source_row": 1}
    assert accepted.to_pylist() == [row] and accepted.schema.equals(tables.CAPTIONS)
    assert pipeline.images == 1


def test_every_filter(tmp_path: Path) -> None:
    texts = ["a dog", "a", "a b c d e", "", " &nbsp; ", "x" * 2001, "a\x00 dog", "a cat", "caf\udce9 dog"]
    (tmp_path / "a.txt").write_bytes("\n".join(texts).encode("utf-8", "surrogateescape"))
    accepted, rejects, _ = run(tmp_path, SourceOptions(path="a.txt"), max_words=4)
    assert accepted["caption"].to_pylist() == ["a dog", "a cat"]
    assert reasons(rejects) == [
        (2, "too_few_words"), (3, "too_many_words"), (4, "empty"), (5, "empty"), (6, "too_long"), (7, "duplicate"),
        (9, "not_utf8"),
    ]  # fmt: skip
    assert "(data.max_words)" in rejects["detail"][1].as_py()
    assert rejects["caption_raw"].to_pylist()[-1] == "caf\ufffd dog"


def test_duplicates_are_of_one_image_and_over_files(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", {"image": "1", "caption": "a dog"}, {"image": "2", "caption": "a dog"})
    jsonl(tmp_path / "b.jsonl", {"image": "2", "caption": "a&nbsp;dog"}, {"caption": "a dog"}, {"caption": "a dog"})
    accepted, rejects, _ = run(tmp_path, SourceOptions(path="a.jsonl"), SourceOptions(path="b.jsonl"))
    assert accepted["image_id"].to_pylist() == ["1", "2", None]
    assert reasons(rejects) == [(1, "duplicate"), (3, "duplicate")]
    assert rejects["source"].to_pylist() == ["b.jsonl", "b.jsonl"]


def test_one_image_id_in_two_archives(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", {"image_id": "1", "image": "val/1.jpg", "caption": "a dog"})
    cat = {"image_id": "1", "image": "1.jpg", "caption": "a cat"}
    jsonl(tmp_path / "b.jsonl", cat, {"image": "2", "caption": "a fox"})
    first, second = SourceOptions(path="a.jsonl", images="a.tar"), SourceOptions(path="b.jsonl", images="b.tar")
    accepted, rejects, pipeline = run(tmp_path, first, second)
    assert accepted["caption"].to_pylist() == ["a dog", "a fox"]
    assert reasons(rejects) == [(1, "image_conflict")]
    assert pipeline.images == 2
    # In one archive it is the same image, with or without its folder.
    accepted, rejects, _ = run(tmp_path, first, SourceOptions(path="b.jsonl", images="a.tar"))
    assert accepted["caption"].to_pylist() == ["a dog", "a cat", "a fox"]


def coco(path: Path, *files: str) -> None:
    document: dict[str, Any] = {"images": [{"id": n, "file_name": name} for n, name in enumerate(files)]}
    document["annotations"] = [{"image_id": n, "caption": f"a photo of {name}"} for n, name in enumerate(files)]
    path.write_text(json.dumps(document))


def test_one_image_id_for_two_images_of_an_archive(tmp_path: Path) -> None:
    coco(tmp_path / "train.json", "a.jpg", "b.jpg")
    coco(tmp_path / "val.json", "a.jpg", "c.jpg")
    train = SourceOptions(path="train.json", images="pics")
    accepted, rejects, _ = run(tmp_path, train, SourceOptions(path="val.json", images="pics", split="val"))
    # A row that is trained on and held out is no duplicate: it is counted as shared by the splits.
    assert accepted["image_path"].to_pylist() == ["a.jpg", "b.jpg", "a.jpg"]
    assert reasons(rejects) == [(1, "image_conflict")]
    assert "image id '1' already names another image; give one of the sources" in rejects["detail"][0].as_py()
    val = SourceOptions(path="val.json", images="pics", split="val", image_prefix="val/")
    accepted, rejects, pipeline = run(tmp_path, train, val)
    assert accepted["image_id"].to_pylist() == ["0", "1", "val/0", "val/1"]
    assert (rejects.num_rows, pipeline.images) == (0, 4)


def pictures(path: Path, *rows: tuple[str | None, bytes, str]) -> None:
    columns = dict(zip(("filename", "image", "caption"), zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path)


def test_pictures_that_share_an_id_without_being_one(tmp_path: Path) -> None:
    rows = [("1.jpg", b"dog", "a dog"), ("1.jpg", b"cat", "a cat"), ("1.jpg", b"dog", "one dog")]
    pictures(tmp_path / "a.parquet", *rows, (None, b"cat", "a fox"))
    pictures(tmp_path / "b.parquet", ("1.jpg", b"dog", "my dog"), ("1.jpg", b"cow", "a cow"), (None, b"cat", "a lynx"))
    sources = [SourceOptions(path=name) for name in ("a.parquet", "b.parquet")]
    accepted, rejects, pipeline = run(tmp_path, *sources)
    assert accepted["caption"].to_pylist() == ["a dog", "one dog", "a fox", "my dog", "a lynx"]
    assert accepted["images"].to_pylist() == ["a.parquet"] * 3 + ["b.parquet"] * 2
    assert reasons(rejects) == [(1, "image_conflict"), (1, "image_conflict")]
    assert "name the column of pictures in data.sources[].columns.image" in rejects["detail"][0].as_py()
    assert pipeline.images == 2
    # They clash after a restart, too.
    files = list_files(tmp_path, sources)
    first, resumed = (CaptionPipeline(DataOptions(sources=tuple(sources)), files) for _ in range(2))
    resumed.restore(next(first.run(files[0])).accepted)
    assert next(resumed.run(files[1])).accepted.column("caption").to_pylist() == ["my dog", "a lynx"]
    by_content = [source.model_copy(update={"columns": ColumnNames(image="image")}) for source in sources]
    accepted, rejects, pipeline = run(tmp_path, *by_content)
    assert (accepted.num_rows, rejects.num_rows, pipeline.images) == (7, 0, 3)


def test_splits_and_licenses(tmp_path: Path) -> None:
    rows = [
        {"caption": "a dog", "split": "restval", "license": "?"},
        {"caption": "a cat", "split": "dev", "license": " CC0 "},
        {"caption": "a fox", "split": "minitrain"},
        {"caption": "a cow", "split": ""},
    ]
    jsonl(tmp_path / "a.jsonl", *rows)
    accepted, rejects, _ = run(tmp_path, SourceOptions(path="a.jsonl", split="test", license="MIT"))
    assert accepted["split"].to_pylist() == ["train", "val", "test"]
    assert accepted["license"].to_pylist() == ["MIT", "CC0", "MIT"]
    assert reasons(rejects) == [(3, "unknown_split")]
    with pytest.raises(ConfigError, match=r"split is 'trian'"):
        run(tmp_path, SourceOptions(path="a.jsonl", split="trian"))


def test_a_row_without_a_split_follows_its_image(tmp_path: Path) -> None:
    rows = [{"image": f"{n}.jpg", "caption": f"picture {n}", "split": split} for n, split in enumerate(("val", "test"))]
    main = jsonl(tmp_path / "main.jsonl", *rows)
    marks = [{"image": f"{n}.jpg", "caption": f"query {n}"} for n in range(3)]
    feedback = jsonl(tmp_path / "marks.jsonl", *marks, {"image": "0.jpg", "caption": "query four", "split": "train"})
    sources = [SourceOptions(path=path.name, images="pics") for path in (main, feedback)]
    accepted, _, _ = run(tmp_path, *sources)
    assert accepted["split"].to_pylist() == ["val", "test", "val", "test", "train", "train"]
    files = list_files(tmp_path, sources)
    resumed = CaptionPipeline(DataOptions(sources=tuple(sources)), files)
    resumed.restore(pa.RecordBatch.from_pylist(accepted.slice(0, 2).to_pylist(), accepted.schema))
    again = [outcome.accepted for outcome in resumed.run(files[1])]
    assert pa.Table.from_batches(again)["split"].to_pylist() == ["val", "test", "train", "train"]


@pytest.mark.parametrize("name", ["nope.csv", "nope", "empty", "bad.parquet", "bad.json", "odd", "pipe"])
def test_bad_files_stop_or_are_skipped(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.parquet").write_text("no")
    (tmp_path / "bad.json").write_text('{"images": [')
    (tmp_path / "odd").write_text("?")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "good.txt").write_text("a dog\n")
    sources = (SourceOptions(path=name), SourceOptions(path="good.txt"))
    with pytest.raises(InputError, match=name):
        run(tmp_path, *sources)
    accepted, rejects, _ = run(tmp_path, *sources, on_error="skip")
    assert accepted["caption"].to_pylist() == ["a dog"]
    assert reasons(rejects) == [(None, "unreadable")]
    assert rejects["source"].to_pylist() == [name]
    assert str(tmp_path) not in rejects["detail"][0].as_py()


def test_restoring_is_as_having_read(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", *({"image": str(n % 7), "caption": f"dog {n % 30}"} for n in range(100)))
    jsonl(tmp_path / "b.jsonl", *({"image": str(n % 9), "caption": f"dog {n % 40}"} for n in range(100)))
    sources = (SourceOptions(path="a.jsonl", images="a"), SourceOptions(path="b.jsonl", images="b"))
    data = DataOptions(sources=sources)
    files = list_files(tmp_path, sources)
    whole, again = CaptionPipeline(data, files), CaptionPipeline(data, files)
    for outcome in whole.run(files[0]):
        again.restore(outcome.accepted)
    expected, outcomes = list(whole.run(files[1])), list(again.run(files[1]))
    assert expected == outcomes
    assert whole.images == again.images


@given(st.binary(max_size=200))
@settings(max_examples=100)
def test_any_bytes_in_any_line_format(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("a.txt", "a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.tar"):
        (folder / name).write_bytes(raw)
        run(folder, SourceOptions(path=name), on_error="skip")


def test_images_are_held_out_whole_and_whatever_else_there_is(tmp_path: Path) -> None:
    records = [{"image": f"{n}.jpg", "caption": f"picture {n} says {m}"} for n in range(400) for m in range(2)]
    labeled = [{**record, "split": "train"} for record in records[:4]]
    source = SourceOptions(path=jsonl(tmp_path / "a.jsonl", *labeled, *records[4:]).name)
    accepted, _, _ = run(tmp_path, source, held_out=0.25)
    splits: dict[str, set[str]] = {}
    for row in accepted.select(["image_id", "split"]).to_pylist():
        splits.setdefault(row["image_id"], set()).add(row["split"])
    assert all(len(each) == 1 for each in splits.values())
    held = {image for image, each in splits.items() if each == {"val"}}
    assert 60 < len(held) < 140 and held.isdisjoint({"0.jpg", "1.jpg"})
    jsonl(tmp_path / "a.jsonl", *records[200:])
    again, _, _ = run(tmp_path, source, held_out=0.25)
    rows = zip(again["image_id"].to_pylist(), again["split"].to_pylist(), strict=True)
    assert {image for image, split in rows if split == "val"} == {f"{n}.jpg" for n in range(100, 400)} & held
    none, _, _ = run(tmp_path, source)
    assert set(none["split"].to_pylist()) == {"train"}
