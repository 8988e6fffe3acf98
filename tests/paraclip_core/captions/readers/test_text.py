"""Plain text, and what all text files share: endless lines, bytes that are not UTF-8, gzip."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from paraclip_core.captions.readers.json import read_jsonl
from paraclip_core.captions.readers.tabular import read_csv, read_tsv
from paraclip_core.captions.readers.text import read_text
from paraclip_core.captions.rows import LONGEST_RECORD, RowBatch
from paraclip_core.config import SourceOptions
from paraclip_core.errors import InputError

OPTIONS = SourceOptions(path="x")


def write(folder: Path, data: bytes | str) -> Path:
    path = folder / "rows"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def first(batches: Iterator[RowBatch]) -> RowBatch:
    return next(batches, RowBatch())


@pytest.mark.parametrize("line", ["image,caption", "caption;image", "1.jpg#0\ta dog", "a dog\thttp://a/1.jpg"])
def test_a_table_is_not_taken_for_plain_text(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError, match=r"plain text, but its first line is one of a table .*format"):
        first(read_text(write(tmp_path, f"\ufeff{line}\n"), OPTIONS))
    assert first(read_text(write(tmp_path, f"a caption, an image\n{line}\n"), OPTIONS)).captions[1] == line


def test_images_without_a_column_that_names_them(tmp_path: Path) -> None:
    options = SourceOptions(path="x", images="pics")
    expected = r"none of the columns image_id, image.*its columns are .*columns\.image"
    with pytest.raises(InputError, match=expected):
        first(read_csv(write(tmp_path, "caption,picture\na dog,1.jpg\n"), options))
    with pytest.raises(InputError, match=expected):
        first(read_jsonl(write(tmp_path, '{"caption": "a dog", "picture": "1.jpg"}\n'), options))
    lines = '{"caption": "no image"}\n{"caption": "a dog", "image": "1.jpg"}\n'
    assert first(read_jsonl(write(tmp_path, lines), options)).image_ids == [None, "1.jpg"]


def test_an_imagefolder_names_its_images_by_file_name(tmp_path: Path) -> None:
    options = SourceOptions(path="x", images="pics")
    for name, reader, text in (
        ("csv", read_csv, "file_name,text\n1.jpg,a dog\n"),
        ("jsonl", read_jsonl, '{"file_name": "1.jpg", "text": "a dog"}\n'),
    ):
        batch = first(reader(write(tmp_path, text), options))
        assert (batch.image_ids, batch.image_paths, batch.captions) == (["1.jpg"], ["1.jpg"], ["a dog"]), name
    both = first(read_csv(write(tmp_path, "image_id,file_name,text\n1,1.jpg,a dog\n"), options))
    assert (both.image_ids, both.image_paths) == (["1"], ["1.jpg"])


def test_an_endless_line_is_rejected_without_being_kept(tmp_path: Path) -> None:
    path = write(tmp_path, b"caption\na dog\n" + b"x" * (2 * LONGEST_RECORD + 5) + b"\na cat\n")
    for reader in (read_tsv, read_text, read_jsonl):
        options = OPTIONS
        if reader is read_jsonl:
            path = write(tmp_path, b'{"text": "a dog"}\n' + b"x" * (LONGEST_RECORD + 5) + b'\n{"text": "a cat"}\n')
        batches = list(reader(path, options))
        captions = [caption for batch in batches for caption in batch.captions]
        assert captions[-2:] == ["a dog", "a cat"]
        assert len([reject for batch in batches for reject in batch.rejects]) == 1


def test_not_utf8(tmp_path: Path) -> None:
    path = write(tmp_path, b"caption,image\ncaf\xe9,1\na dog,2\n")
    assert first(read_csv(path, OPTIONS)).captions == ["caf\udce9", "a dog"]
    path = write(tmp_path, b'{"caption": "caf\xe9"}\n{"caption": "\\ud800"}\n')
    assert first(read_jsonl(path, OPTIONS)).captions == ["caf\udce9", "\ud800"]
    with pytest.raises(InputError, match="UTF-16, expected UTF-8; convert"):
        first(read_text(write(tmp_path, "a dog".encode("utf-16")), OPTIONS))
    for form in ("UTF-16LE", "UTF-16BE"):
        with pytest.raises(InputError, match=f"is UTF-16, expected UTF-8; convert it .`iconv -f {form} -t UTF-8`"):
            first(read_csv(write(tmp_path, "caption,image\na dog,1\n".encode(form)), OPTIONS))


def test_what_holds_no_lines(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "rows", "w") as archive:
        archive.writestr("rows.csv", "caption\na dog\n")
    for reader in (read_csv, read_tsv, read_text, read_jsonl):
        with pytest.raises(InputError, match=r"rows is a zip archive or a spreadsheet; unpack it, or export it as CSV"):
            first(reader(tmp_path / "rows", OPTIONS))
    for reader in (read_csv, read_tsv, read_text):
        with pytest.raises(InputError, match=r"rows end in CR alone, expected LF; convert it"):
            first(reader(write(tmp_path, "caption\ra dog\ra cat"), OPTIONS))
    assert first(read_text(write(tmp_path, "a dog\rruns\na cat\r"), OPTIONS)).captions == ["a dog\rruns", "a cat"]


def test_gzip(tmp_path: Path) -> None:
    packed = gzip.compress(b"a dog\n" * 10_000 + bytes(range(65, 91)) * 50)
    path = write(tmp_path, packed)
    assert first(read_text(path, OPTIONS)).captions[0] == "a dog"
    with pytest.raises(InputError, match="cut short"):
        list(read_text(write(tmp_path, packed[:-20]), OPTIONS))
    with pytest.raises(InputError, match="damaged"):
        list(read_text(write(tmp_path, packed[:40] + b"\xff" * 40 + packed[80:]), OPTIONS))
    with pytest.raises(InputError, match="cannot read"):
        list(read_text(write(tmp_path, packed[:-8] + b"\x00" * 8), OPTIONS))


def test_text(tmp_path: Path) -> None:
    batch = first(read_text(write(tmp_path, "\ufeffa dog\r\n\n<b>cat</b>, ignore the above"), OPTIONS))
    assert batch.captions == ["a dog", "", "<b>cat</b>, ignore the above"]
    assert (batch.rows, batch.image_ids) == ([1, 2, 3], [None, None, None])
