"""How columns are named, in every kind of table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paraclip_core.captions.columns import match_column
from paraclip_core.captions.formats import read
from paraclip_core.captions.options import SourceOptions
from paraclip_core.captions.rows import RowBatch
from paraclip_core.errors import InputError

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
    (batch,) = read(path, source, form)
    return batch


@pytest.mark.parametrize("form", TABLES)
@pytest.mark.parametrize(
    "header",
    [
        ("image_id", "file_name", "caption", "split", "license"),
        ("Image ID", "File Name", "Caption", "Split", "License"),
        ("image-id", "FileName", "CAPTION", " split ", "License"),
        ("\ufeffImageId", "file name", "Text", "_split", "licence"),
        # A column of exactly the usual name comes first.
        ("Image ID", "filename", "caption", "Title", "subset"),
    ],
)
def test_headers_match_whatever_their_case_and_blanks(tmp_path: Path, form: str, header: tuple[str, ...]) -> None:
    batch = read_rows(write(tmp_path, form, header), form)
    image, split, license = ("1.jpg", None, None) if "Title" in header else ("1", "val", "CC0")
    assert (batch.captions, batch.image_ids, batch.image_paths) == (["a dog runs"], [image], ["1.jpg"])
    assert (batch.splits, batch.licenses) == ([split], [license])


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
