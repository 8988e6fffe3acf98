"""Parquet sources: LAION's and img2dataset's columns, bad rows and bad files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paraclip_core.captions import rows
from paraclip_core.captions.columns import ColumnNames
from paraclip_core.captions.options import SourceOptions
from paraclip_core.captions.readers import parquet
from paraclip_core.captions.readers.parquet import read_parquet
from paraclip_core.captions.rows import RowBatch
from paraclip_core.errors import InputError

OPTIONS = SourceOptions(path="x")


def write(folder: Path, **columns: pa.Array | list) -> Path:
    path = folder / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def one(path: Path, options: SourceOptions = OPTIONS) -> RowBatch:
    (batch,) = read_parquet(path, options)
    return batch


def test_laion_columns(tmp_path: Path) -> None:
    columns = {"URL": ["http://a", "http://b"], "TEXT": ["a dog", "a cat"], "LICENSE": ["?", "CC0"]}
    batch = one(write(tmp_path, **columns, NSFW=["NO", "NO"]))
    assert (batch.captions, batch.image_ids) == (columns["TEXT"], columns["URL"])
    assert (batch.licenses, batch.splits, batch.rows) == (columns["LICENSE"], [None, None], [0, 1])


def test_columns_of_the_user(tmp_path: Path) -> None:
    path = write(tmp_path, words=["a dog"], pic=[7], of=["val"], terms=pa.array(["CC0"]).dictionary_encode())
    names = ColumnNames(caption="words", image="pic", split="of", license="terms")
    batch = one(path, SourceOptions(path="x", columns=names))
    assert (batch.captions, batch.image_ids, batch.image_paths) == (["a dog"], ["7"], ["7"])
    assert (batch.splits, batch.licenses) == (["val"], ["CC0"])


def test_lists_of_captions_and_nulls(tmp_path: Path) -> None:
    path = write(tmp_path, caption=[["a dog", "one dog"], None, ["a cat"], []], image=["1", "2", "3", "4"])
    batch = one(path)
    assert batch.captions == ["a dog", "one dog", "a cat"]
    assert batch.image_ids == ["1", "1", "3"]
    assert batch.rows == [0, 0, 2]
    assert [(reject.row, reject.reason) for reject in batch.rejects] == [(1, "missing_field"), (3, "missing_field")]


@pytest.mark.parametrize("named", [ColumnNames(caption=("caption_0", "caption_1")), ColumnNames()])
@pytest.mark.parametrize("inside", [False, True])
def test_captions_in_several_columns(tmp_path: Path, named: ColumnNames, inside: bool) -> None:
    columns = {"caption_0": ["a dog", None, "a fox"], "caption_1": [["one dog", "1 dog"], ["a cat"], None]}
    image = pictures(b"x", b"y", b"z") if inside else ["1", "2", "3"]
    batch = one(write(tmp_path, image=image, **columns), SourceOptions(path="x", columns=named))
    assert batch.captions == ["a dog", "one dog", "1 dog", "a cat", "a fox"]
    assert batch.rows == [0, 0, 0, 1, 2]
    assert batch.image_ids == [digest(b"xyz"[r : r + 1]) if inside else str(r + 1) for r in batch.rows]
    assert [(reject.row, reject.reason) for reject in batch.rejects] == [(1, "missing_field"), (2, "missing_field")]


def test_one_of_several_columns_is_absent_or_of_the_wrong_type(tmp_path: Path) -> None:
    path = write(tmp_path, a=["a dog"], b=[1.5])
    with pytest.raises(InputError, match=r"no column 'c' \(data\.sources\[\]\.columns\.caption\); it has 'a', 'b'"):
        one(path, SourceOptions(path="x", columns=ColumnNames(caption=("a", "c"))))
    batch = one(path, SourceOptions(path="x", columns=ColumnNames(caption=("a", "b"), image="b")))
    assert (len(batch), {reject.reason for reject in batch.rejects}) == (0, {"wrong_type"})


@pytest.mark.parametrize("captions", [["a dog", "a cat"], ["a dog", None]])
def test_blanks_are_nothing_as_in_other_formats(tmp_path: Path, captions: list[str | None]) -> None:
    batch = one(write(tmp_path, caption=captions, image=[" 1.jpg", ""], split=["", "val"], license=[" ", "CC0"]))
    assert batch.image_ids == ["1.jpg", None][: len(batch)]
    assert batch.image_paths == batch.image_ids
    assert batch.splits == [None, "val"][: len(batch)]
    assert batch.licenses == [None, "CC0"][: len(batch)]


def test_types_of_other_writers_and_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    assert one(write(tmp_path, caption_0=["no"], caption=["a dog"], caption_1=["no"])).captions == ["a dog"]
    lists = pa.array([["a dog", "one dog"], ["a cat"]], pa.large_list(pa.large_string()))
    assert one(write(tmp_path, captions=lists)).captions == ["a dog", "one dog", "a cat"]
    assert one(write(tmp_path, caption=pa.array(["a dog"], pa.string_view()))).captions == ["a dog"]
    raw = pa.array([b"a dog", b"caf\xe9 table", "ünïcode".encode()])
    path = write(tmp_path, TEXT=pa.Array.from_buffers(pa.string(), 3, raw.buffers()))
    assert one(path).captions == ["a dog", "caf\udce9 table", "ünïcode"]


def test_rows_go_on_counting_over_batches(tmp_path: Path) -> None:
    path = write(tmp_path, caption=[f"caption {n}" for n in range(20_000)])
    assert [row for batch in read_parquet(path, OPTIONS) for row in batch.rows] == list(range(20_000))


@pytest.mark.parametrize("caption", [["a dog", "a cat"], ["a dog of many words"]], ids=["lists", "long"])
def test_batches_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caption: list[str]) -> None:
    for module in (parquet, rows):
        monkeypatch.setattr(module, "BATCH_ROWS", 8)
        monkeypatch.setattr(module, "BATCH_CHARS", 40)
    batches = list(read_parquet(write(tmp_path, caption=[caption if len(caption) > 1 else caption[0]] * 7), OPTIONS))
    assert all(len(batch) <= 8 and sum(map(len, batch.captions)) < 60 for batch in batches)
    assert [row for batch in batches for row in batch.rows] == sorted([*range(7)] * len(caption))


@pytest.mark.parametrize("keep", [0, 3, 100, -5, None])
def test_a_damaged_file_or_page(tmp_path: Path, keep: int | None) -> None:
    path = write(tmp_path, caption=[f"caption {n}" for n in range(5000)])
    raw = path.read_bytes()
    path.write_bytes(raw[:4] + b"\xff" * 396 + raw[400:] if keep is None else raw[:keep])
    with pytest.raises(InputError, match=r"rows\.parquet cannot be read as Parquet"):
        list(read_parquet(path, OPTIONS))


def test_real_rows(data_root: Path) -> None:
    batches = list(read_parquet(data_root / "laion_sample" / "test_10000.parquet", OPTIONS))
    assert sum(map(len, batches)) == 10_000
    assert batches[0].image_ids[0] is not None
    assert not any(batch.rejects for batch in batches)


def pictures(*data: bytes | None) -> pa.Array:
    """As the library `datasets` writes its images."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": one, "path": "1.jpg"} for one in data], kind)


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_pictures_are_known_by_what_they_are(tmp_path: Path, kind: str) -> None:
    image = pictures(b"x", b"y", b"x")
    path = write(tmp_path, image=image if kind == "struct" else image.field("bytes"), text=["a", "b", "c"])
    batch = one(path)
    assert batch.image_ids == [digest(b"x"), digest(b"y"), digest(b"x")]
    assert batch.image_paths == [f"image[{row:09d}]/{image}" for row, image in enumerate(batch.image_ids)]


def test_a_key_beside_pictures_is_the_images_id(tmp_path: Path) -> None:
    columns = {"img": pictures(b"x", b"y"), "caption": [["a dog", "one dog"], ["a cat"]], "filename": ["1.jpg", " "]}
    path = write(tmp_path, **columns, split=["val", None])
    batch = one(path)
    assert batch.image_ids == ["1.jpg", "1.jpg", digest(b"y")]
    assert (batch.rows, batch.splits) == ([0, 0, 1], ["val", "val", None])
    named = ColumnNames(image="img")
    assert one(path, SourceOptions(path="x", columns=named)).image_ids[0] == digest(b"x")
    with_files = SourceOptions(path="x", images="pics", columns=ColumnNames(image="filename"))
    assert one(path, with_files).image_paths == ["1.jpg", "1.jpg", None]
    # A column of numbers with gaps, as pandas writes it.
    numbers = {"image": pictures(b"x", b"y"), "caption": ["a dog", "a cat"], "filename": [1.0, None]}
    batch = one(write(tmp_path, **numbers))
    assert batch.image_ids == [digest(b"y")] and [reject.reason for reject in batch.rejects] == ["wrong_type"]


def test_rows_without_a_picture_and_two_columns_that_may_be_them_are_reported(tmp_path: Path) -> None:
    image = pa.concat_arrays([pictures(b"x", None), pa.nulls(1, pictures().type), pictures(b"")])
    batch = one(write(tmp_path, image=image, caption=["a dog", "a cat", "a fox", "a cow"]))
    assert batch.captions == ["a dog", "a cow"]
    assert [(reject.row, reject.caption) for reject in batch.rejects] == [(1, "a cat"), (2, "a fox")]
    assert {reject.reason for reject in batch.rejects} == {"missing_field"}
    assert batch.rejects[0].detail == "no picture in column 'image', its bytes are null"
    path = write(tmp_path, left=pictures(b"x"), right=pictures(b"y"), caption=["a dog"])
    with pytest.raises(InputError, match=r"'left', 'right'.*columns\.image"):
        one(path)
    path = write(tmp_path, image=pictures(b"x"), caption=["a dog"])
    assert one(path, SourceOptions(path="x", images="pics")).rejects[0].reason == "wrong_type"
