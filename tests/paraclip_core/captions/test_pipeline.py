"""Which files stand behind a source, which format each has, how columns are named; and from files to accepted and
rejected rows."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from paraclip_core import tables
from paraclip_core.captions import rows as row_module
from paraclip_core.captions.pipeline import READERS, CaptionPipeline, KeySet, detect, expand, own_reader_source, read
from paraclip_core.captions.rows import RowBatch, match_column
from paraclip_core.captions.tokens import Tokenizer
from paraclip_core.config import FORMATS, ColumnNames, DataOptions, SourceOptions
from paraclip_core.errors import ConfigError, InputError

KARPATHY = json.dumps({"images": [{"filename": "1.jpg", "sentences": [{"raw": "a dog"}]}]})
COCO = json.dumps({"info": {}, "annotations": [], "images": []})


def names(root: Path, **options: str) -> list[tuple[str, str, str | None]]:
    return [(f.name, f.form, f.images) for f in expand(root, [SourceOptions.model_validate(options)])]


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
    files = {file.name: file for file in expand(tmp_path, [SourceOptions(path=".")])}
    assert {name: (file.images, file.split) for name, file in files.items()} == {
        "minitrain-00000-of-00001.parquet": ("minitrain-00000-of-00001.parquet", "train"),
        "test-00000-of-00001.parquet": (None, "train"),
        "test.parquet": ("test.parquet", "train"),
        "train-00000-of-00001.parquet": ("train-00000-of-00001.parquet", "train"),
        "validation-00000-of-00002-0f3a.parquet": ("validation-00000-of-00002-0f3a.parquet", "val"),
    }
    (named,) = expand(tmp_path, [SourceOptions(path="validation-00000-of-00002-0f3a.parquet", split="test")])
    assert named.split == "test"
    assert names(tmp_path, path="test.parquet", images="pics") == [("test.parquet", "parquet", "pics")]


def test_a_root_among_the_captions_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "runs/artifacts").mkdir(parents=True)
    for name in ("a.csv", "runs/b.jsonl", "runs/artifacts/c.parquet", "runs/d.txt"):
        (tmp_path / name).touch()
    source = SourceOptions(path=".")
    assert [file.name for file in expand(tmp_path, [source], tmp_path / "runs")] == ["a.csv"]
    inside = SourceOptions(path="runs/artifacts")
    assert len(expand(tmp_path, [inside], tmp_path / "runs")) == 1, "what is named itself is read"


def test_missing_paths_and_empty_folders_stand_for_themselves(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("nope.csv", "empty"):
        assert names(tmp_path, path=name) == [(name, "unknown", None)]
    with pytest.raises(ConfigError, match=r"data\.sources is empty"):
        expand(tmp_path, [])
    # Texts are read only where there is nothing else.
    for name in ("b.txt", "a.txt", "readme.txt"):
        (tmp_path / name).write_text("a dog")
    assert [name for name, *_ in names(tmp_path, path=".")] == ["a.txt", "b.txt"]


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
    (tmp_path / "x.json").write_text('{"a":\n 1\n}')
    with pytest.raises(InputError, match="cannot tell the format"):
        detect(tmp_path / "x.json")
    for data, message in ((b"\xef\xbb\xbf \n", r"x\.json is empty"), ("{}".encode("utf-16"), r"x\.json is UTF-16")):
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


def test_every_format_has_a_reader_and_any_other_is_told() -> None:
    for name in ("excel", "a:", ":b", "a b:c"):
        with pytest.raises(ValidationError, match=r"is no format; expected auto, parquet, .* package\.module:function"):
            SourceOptions(path="x", format=name)
    assert ("auto", *READERS) == FORMATS


TABLES = ("csv", "tsv", "jsonl", "parquet")
ROW = ("1", "1.jpg", "a dog runs", "val", "CC0")


def write(folder: Path, form: str, header: Sequence[str], row: Sequence[str] = ROW) -> Path:
    path = folder / f"rows.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_arrays([pa.array([cell]) for cell in row], names=list(header)), path)
    elif form == "jsonl":
        path.write_text(json.dumps(dict(zip(header, row, strict=True))) + "\n")
    else:
        separator = "," if form == "csv" else "\t"
        path.write_text("\ufeff" + separator.join(header) + "\n" + separator.join(row) + "\n")
    return path


def read_rows(path: Path, form: str, **options: object) -> RowBatch:
    source = SourceOptions.model_validate({"path": "x", **options})
    (batch,) = READERS[form].read(path, source)
    return batch


@pytest.mark.parametrize("form", TABLES)
@pytest.mark.parametrize(
    "header",
    [
        ("image_id", "file_name", "caption", "split", "licence"),
        ("Image ID", "File Name", "Caption", "Split", "Licence"),
        ("image-id", "FileName", "CAPTION", " split ", "License"),
        ("\ufeffImageId", "file name", "Text", "_split", "licence"),
    ],
)
def test_headers_match_whatever_their_case_and_blanks(tmp_path: Path, form: str, header: tuple[str, ...]) -> None:
    batch = read_rows(write(tmp_path, form, header), form)
    assert (batch.captions, batch.image_ids, batch.image_paths) == (["a dog runs"], ["1"], ["1.jpg"])
    assert (batch.splits, batch.licences) == (["val"], ["CC0"])


@pytest.mark.parametrize("form", TABLES)
def test_a_column_of_exactly_the_name_comes_first(tmp_path: Path, form: str) -> None:
    """What files gave whose other columns were no usual ones before."""
    header = ("Image ID", "filename", "caption", "Title", "subset")
    batch = read_rows(write(tmp_path, form, header), form)
    assert (batch.captions, batch.image_ids, batch.image_paths) == (["a dog runs"], ["1.jpg"], ["1.jpg"])


@pytest.mark.parametrize("form", TABLES)
def test_names_that_the_user_gives_match_in_the_same_way(tmp_path: Path, form: str) -> None:
    path = write(tmp_path, form, ("Pic No", "alt-text", "fold"), ("1.jpg", "a dog runs", "val"))
    batch = read_rows(path, form, images="pics", columns={"image": "pic_no", "caption": "ALT text", "split": "Fold"})
    assert (batch.captions, batch.image_ids, batch.splits) == (["a dog runs"], ["1.jpg"], ["val"])
    if form != "jsonl":
        with pytest.raises(InputError, match=r"columns\.caption\); it has 'Pic No'"):
            read_rows(path, form, columns={"caption": "words"})
        with pytest.raises(InputError, match=r"caption, TEXT, text.*'Pic No'"):
            read_rows(path, form)
    path = write(tmp_path, form, ("Alt Text", "alt-text", "image"), ("a dog runs", "a cat sits", "1.jpg"))
    assert read_rows(path, form, columns={"caption": "alt_text"}).captions == ["a dog runs"]
    assert read_rows(path, form, columns={"caption": "alt-text"}).captions == ["a cat sits"]


def test_records_of_one_file_may_differ(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    records = [{"caption": "a dog", "split": "val"}, {"Caption": "a cat", "Split": "test"}, {"note": "no caption"}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    batch = read_rows(path, "jsonl")
    assert (batch.captions, batch.splits) == (["a dog", "a cat"], ["val", "test"])
    assert [(reject.row, reject.reason) for reject in batch.rejects] == [(3, "missing_field")]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_csv_is_separated_as_its_header_is(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f'Image ID{separator}Caption\n1{separator}"a dog{separator} runs, and barks"\n')
    batch = read_rows(path, "csv")
    assert (batch.image_ids, batch.captions) == (["1"], [f"a dog{separator} runs, and barks"])
    path.write_text(f"Bild{separator}Beschreibung\n1{separator}ein Hund\n")
    assert read_rows(path, "csv", columns={"caption": "Beschreibung", "image": "Bild"}).captions == ["ein Hund"]
    # Without a header a semicolon is a letter like any other.
    path.write_text("a dog; it runs\na cat; it sleeps\n")
    assert read_rows(path, "csv").captions == ["a dog; it runs", "a cat; it sleeps"]


def test_a_column_for_any_file() -> None:
    assert match_column(["Paraphrase 1", "paraphrase_2"], "paraphrase_1") == "Paraphrase 1"
    assert match_column(["Paraphrase 1", "paraphrase_1"], "paraphrase_1") == "paraphrase_1"
    assert match_column(["paraphrase"], "paraphrase_1") is None
    assert match_column(["Text", "TITLE"], "title", "text") == "TITLE"
    long = " " * 1000 + "split"
    assert match_column(["caption", long], "split") is None and match_column([long], long) == long


def run(root: Path, *sources: SourceOptions, **options: Any) -> tuple[pa.Table, pa.Table, CaptionPipeline]:
    data = DataOptions(sources=sources, **options)
    files = expand(root, data.sources)
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
    jsonl(tmp_path / "a.jsonl", {"image_id": "i", "image": "p/i.jpg", "caption": " A  caf\u00c3\u00a9 &amp; bar\n"})
    source = SourceOptions(path="a.jsonl", images="images.tar", split="validation", license="CC-BY-4.0")
    accepted, _, pipeline = run(tmp_path, source)
    assert accepted.to_pylist() == [
        {
            "caption_id": tables.text_hash("i", "A café & bar"),
            "image_id": "i",
            "image_path": "p/i.jpg",
            "images": "images.tar",
            "caption": "A café & bar",
            "caption_raw": " A  caf\u00c3\u00a9 &amp; bar\n",
            "caption_tokens": Tokenizer().encode("A café & bar"),
            "split": "val",
            "licence": "CC-BY-4.0",
            "source": "a.jsonl",
            "source_row": 1,
        }
    ]
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
    jsonl(tmp_path / "a.jsonl", {"image": "1", "caption": "a dog"})
    jsonl(tmp_path / "b.jsonl", {"image": "1", "caption": "a cat"}, {"image": "2", "caption": "a fox"})
    first, second = SourceOptions(path="a.jsonl", images="a.tar"), SourceOptions(path="b.jsonl", images="b.tar")
    accepted, rejects, pipeline = run(tmp_path, first, second)
    assert accepted["caption"].to_pylist() == ["a dog", "a fox"]
    assert reasons(rejects) == [(1, "image_conflict")]
    assert pipeline.images == 2
    accepted, rejects, _ = run(tmp_path, first, SourceOptions(path="b.jsonl", images="a.tar"))
    assert accepted.num_rows == 3


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


def test_an_image_is_the_same_with_and_without_its_folder(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", {"image_id": "1", "image": "val/1.jpg", "caption": "a dog"})
    jsonl(tmp_path / "b.jsonl", {"image_id": "1", "image": "1.jpg", "caption": "a cat"})
    accepted, _, _ = run(tmp_path, *(SourceOptions(path=f"{name}.jsonl", images="a.tar") for name in "ab"))
    assert accepted["caption"].to_pylist() == ["a dog", "a cat"]


def pictures(path: Path, *rows: tuple[str | None, bytes, str]) -> None:
    columns = dict(zip(("filename", "image", "caption"), zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path)


def test_pictures_that_share_an_id_without_being_one(tmp_path: Path) -> None:
    rows = [
        ("1.jpg", b"dog", "a dog"),
        ("1.jpg", b"cat", "a cat"),
        ("1.jpg", b"dog", "one dog"),
        (None, b"cat", "a fox"),
    ]
    pictures(tmp_path / "a.parquet", *rows)
    pictures(tmp_path / "b.parquet", ("1.jpg", b"dog", "my dog"), ("1.jpg", b"cow", "a cow"), (None, b"cat", "a lynx"))
    sources = [SourceOptions(path=name) for name in ("a.parquet", "b.parquet")]
    accepted, rejects, pipeline = run(tmp_path, *sources)
    assert accepted["caption"].to_pylist() == ["a dog", "one dog", "a fox", "my dog", "a lynx"]
    assert accepted["images"].to_pylist() == ["a.parquet"] * 3 + ["b.parquet"] * 2
    assert reasons(rejects) == [(1, "image_conflict"), (1, "image_conflict")]
    assert "name the column of pictures in data.sources[].columns.image" in rejects["detail"][0].as_py()
    assert pipeline.images == 2
    # They clash after a restart, too.
    files = expand(tmp_path, sources)
    first, resumed = (CaptionPipeline(DataOptions(sources=tuple(sources)), files) for _ in range(2))
    resumed.restore(next(first.run(files[0])).accepted)
    assert next(resumed.run(files[1])).accepted.column("caption").to_pylist() == ["my dog", "a lynx"]
    by_content = [source.model_copy(update={"columns": ColumnNames(image="image")}) for source in sources]
    accepted, rejects, pipeline = run(tmp_path, *by_content)
    assert (accepted.num_rows, rejects.num_rows, pipeline.images) == (7, 0, 3)


def test_splits_and_licences(tmp_path: Path) -> None:
    rows = [
        {"caption": "a dog", "split": "restval", "license": "?"},
        {"caption": "a cat", "split": "dev", "license": " CC0 "},
        {"caption": "a fox", "split": "minitrain"},
        {"caption": "a cow", "split": ""},
    ]
    jsonl(tmp_path / "a.jsonl", *rows)
    accepted, rejects, _ = run(tmp_path, SourceOptions(path="a.jsonl", split="test", license="MIT"))
    assert accepted["split"].to_pylist() == ["train", "val", "test"]
    assert accepted["licence"].to_pylist() == ["MIT", "CC0", "MIT"]
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
    files = expand(tmp_path, sources)
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
    files = expand(tmp_path, sources)
    whole, again = CaptionPipeline(data, files), CaptionPipeline(data, files)
    for outcome in whole.run(files[0]):
        again.restore(outcome.accepted)
    expected, outcomes = list(whole.run(files[1])), list(again.run(files[1]))
    assert expected == outcomes
    assert whole.images == again.images


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_in_any_line_format(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("a.txt", "a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.tar"):
        (folder / name).write_bytes(raw)
        run(folder, SourceOptions(path=name), on_error="skip")


KEYS = st.lists(st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**60, 2**60 - 1, 2**64 - 1]), max_size=30)


@given(st.lists(KEYS, max_size=8), KEYS)
@settings(max_examples=200, deadline=None)
def test_as_a_set(batches: list[list[int]], asked: list[int]) -> None:
    keys, seen = KeySet(), set[int]()
    for batch in batches:
        expected = []
        for key in batch:
            expected.append(key not in seen)
            seen.add(key)
        assert keys.add(np.array(batch, dtype=np.uint64)).tolist() == expected
        assert len(keys) == len(seen)
    assert keys.contains(np.array(asked, dtype=np.uint64)).tolist() == [key in seen for key in asked]


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
