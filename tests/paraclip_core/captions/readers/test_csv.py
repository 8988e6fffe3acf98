"""CSV and TSV: headers, quotes, columns by name and number."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paraclip_core.captions.columns import ColumnNames
from paraclip_core.captions.options import SourceOptions
from paraclip_core.captions.readers.csv import read_csv, read_tsv
from paraclip_core.errors import InputError
from tests.kit.reading import OPTIONS, first, rejects, write


def test_tsv_without_header_as_conceptual_captions_or_with_the_image_first(tmp_path: Path) -> None:
    batch = first(read_tsv(write(tmp_path, 'a "dog" , yes\thttp://a/1.jpg\n"a cat\thttps://b\n'), OPTIONS))
    assert (batch.captions, batch.rows) == (['a "dog" , yes', '"a cat'], [1, 2])
    assert batch.image_ids == ["http://a/1.jpg", "https://b"]
    batch = first(read_tsv(write(tmp_path, "100 a.jpg#0\ta dog\n100 a.jpg#1\ta cat\n"), OPTIONS))
    assert (batch.captions, batch.image_ids) == (["a dog", "a cat"], ["100 a.jpg#0", "100 a.jpg#1"])


def test_real_conceptual_captions(data_root: Path) -> None:
    batches = list(read_tsv(data_root / "cc3m" / "Validation_GCC-1.1.0-Validation.tsv", OPTIONS))
    assert sum(map(len, batches)) == 15_833
    assert not any(batch.rejects for batch in batches)
    assert all(image is not None and image.startswith("http") for batch in batches for image in batch.image_ids)


def test_csv_with_header_quotes_and_line_breaks(tmp_path: Path) -> None:
    text = '\ufeffimage,caption,split\r\n1.jpg,"a ""dog"",\non a beach",val\r\n\r\n2.jpg,a cat\r\n3.jpg,a fox,test\r\n'
    batch = first(read_csv(write(tmp_path, text), OPTIONS))
    assert batch.captions == ['a "dog",\non a beach', "a fox"]
    assert (batch.image_ids, batch.splits, batch.rows) == (["1.jpg", "3.jpg"], ["val", "test"], [2, 6])
    assert rejects(batch) == [(4, "empty"), (5, "missing_field")]


def test_a_table_with_an_unknown_header_is_not_blamed_on_its_quotes(tmp_path: Path) -> None:
    good = 'Bild;Titel\n1.png;ein Hund\n"2; b.png";"ein ""Hund""\nam Strand"\n'
    with pytest.raises(InputError, match=r"no header that names a caption .*2 fields: 'Bild', 'Titel'"):
        first(read_csv(write(tmp_path, good), SourceOptions(path="x")))
    named = SourceOptions(path="x", columns=ColumnNames(caption="Titel", image="Bild"))
    assert first(read_csv(write(tmp_path, good), named)).captions == ["ein Hund", 'ein "Hund"\nam Strand']
    # Neither a broken quote in it nor one in a column of captions is the header's fault.
    for bad in (good.replace('"2; b', '"2"; b'), 'a dog; a cat\n"a dog" on a beach\n'):
        with pytest.raises(InputError, match="Is a quote not closed or not doubled"):
            first(read_csv(write(tmp_path, bad), SourceOptions(path="x")))


def test_columns_by_number_wrong_ones_and_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    options = SourceOptions(path="x", columns=ColumnNames(caption="2", image="0"))
    batch = first(read_csv(write(tmp_path, "1,x,a dog\n2,y,a cat\n"), options))
    assert (batch.captions, batch.image_ids, batch.rows) == (["a dog", "a cat"], ["1", "2"], [1, 2])
    options = SourceOptions(path="x", columns=ColumnNames(caption="captoin"))
    with pytest.raises(InputError, match=r"no column 'captoin'.*'image', 'caption'"):
        first(read_csv(write(tmp_path, "image,caption\n1,a dog\n"), options))
    with pytest.raises(InputError, match=r"no column '5'.*'0', '1'"):
        first(read_csv(write(tmp_path, "1,2\n"), SourceOptions(path="x", columns=ColumnNames(caption="5"))))
    with pytest.raises(InputError, match=r"begins at line 3.*quote not closed"):
        list(read_csv(write(tmp_path, 'caption\na dog\n"a cat\na fox\n'), OPTIONS))


def test_captions_in_several_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "image,caption_0,caption_1\n1.jpg,a dog,one dog\n2.jpg,a cat,\n")
    for named in (ColumnNames(), ColumnNames(caption=("caption_0", "caption_1"))):
        batch = first(read_csv(path, SourceOptions(path="x", columns=named)))
        assert batch.captions == ["a dog", "one dog", "a cat", ""]
        assert batch.image_ids == ["1.jpg", "1.jpg", "2.jpg", "2.jpg"]
        assert batch.rows == [2, 2, 3, 3]
    numbers = SourceOptions(path="x", columns=ColumnNames(caption=("2", "1"), image="0"))
    assert first(read_tsv(write(tmp_path, "1.jpg\ta dog\tone dog\n"), numbers)).captions == ["one dog", "a dog"]
    with pytest.raises(InputError, match=r"no column 'c' \(data\.sources\[\]\.columns\.caption\); it has 'a', 'b'"):
        list(read_tsv(write(tmp_path, "a\tb\n"), SourceOptions(path="x", columns=ColumnNames(caption=("a", "c")))))


@pytest.mark.parametrize("first_line", ["a cat", "caption_0"])
def test_one_column_without_header(tmp_path: Path, first_line: str) -> None:
    assert first(read_csv(write(tmp_path, f"{first_line}\na dog\n"), OPTIONS)).captions == [first_line, "a dog"]


@pytest.mark.parametrize("text", ["a,b,c\n", "a dog,a cat\n", "1.jpg,2.jpg\n"])
def test_a_caption_column_that_cannot_be_guessed(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"no header that names a caption.*columns\.caption"):
        first(read_csv(write(tmp_path, text), OPTIONS))


FIELD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)


@given(st.lists(st.tuples(FIELD, FIELD), max_size=6))
@settings(max_examples=150, deadline=None)
def test_csv_reads_what_csv_writes(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([("caption", "image"), *rows])
    path = write(tmp_path_factory.mktemp("csv"), buffer.getvalue())
    batch = first(read_csv(path, OPTIONS))
    expected = [caption.replace("\r\n", "\n") for caption, _ in rows]
    assert [caption.replace("\r\n", "\n") for caption in batch.captions] == expected
    assert not batch.rejects
