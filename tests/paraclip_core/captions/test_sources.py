"""Which files stand behind a source, which format each has, and how the columns of tables are named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from paraclip_core.captions.pipeline import CaptionPipeline
from paraclip_core.captions.rows import RowBatch, match_column
from paraclip_core.captions.sources import READERS, detect, expand, own_reader_source, read
from paraclip_core.config import FORMATS, DataOptions, SourceOptions
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
