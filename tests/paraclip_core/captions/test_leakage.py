"""What training and validation share is counted by id, by content and by caption, and too much of it is refused."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from paraclip_core import tables
from paraclip_core.captions.leakage import SHARED_COLUMNS, Shared, find_shared, shared_contents
from paraclip_core.clip.images import ImageArchive
from paraclip_core.errors import InputError
from paraclip_core.pictures import picture_digest, picture_name

SCHEMA = pa.schema([tables.CAPTIONS.field(name) for name in SHARED_COLUMNS])
Row = tuple[str | None, str, str, str]
"""Image and its archive, caption and split."""


def count(root: Path, rows: Sequence[Row]) -> Shared:
    columns = [
        {"image_id": image, "image_path": image, "images": images, "caption": caption, "split": split}
        for image, images, caption, split in rows
    ]
    batches = [pa.RecordBatch.from_pylist(columns[n : n + 2], SCHEMA) for n in range(0, len(columns), 2)]
    return find_shared(lambda: batches, shared_contents(lambda: batches, lambda name: ImageArchive(root / name)))


def write(root: Path, **contents: bytes) -> None:
    """The images as a folder, and as a tar."""
    (root / "pics").mkdir()
    with tarfile.open(root / "pics.tar", "w") as tar:
        for name, data in contents.items():
            (root / "pics" / name).write_bytes(data)
            info = tarfile.TarInfo(f"deep/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("images", ["pics", "pics.tar"])
def test_ids_contents_and_captions(tmp_path: Path, images: str) -> None:
    write(tmp_path, a=b"one", b=b"two", c=b"three", d=b"one", e=b"own", f=b"four")
    rows = [("a", images, "a dog", "train"), ("b", images, "a cat", "train"), ("c", images, "a cow", "train")]
    rows += [("b", images, "a hen", "val"), ("d", images, "a cat", "test"), ("e", images, "a fox", "val")]
    shared = count(tmp_path, [*rows, ("f", images, "an owl", "val"), ("gone", images, "an ox", "val")])
    # Of "own" there is another image with as many bytes, which is not the same one.
    assert shared == Shared(images=5, by_id=1, captions=5, equal_captions=1, compared=3, by_content=1)
    assert shared.notices == [
        "1 of 5 validation images are trained on, too, by their ids",
        "1 of 3 validation images have the contents of a training image",
        "1 of 5 validation captions are training captions, too",
    ]
    with pytest.raises(InputError, match=r"1 of 5 .*; 1 of 3 .*give all rows of an image one split .*data\.held_out"):
        shared.check()


def test_pictures_in_parquet_are_told_by_their_names(tmp_path: Path) -> None:
    names = [picture_name("image", row, picture_digest(data)) for row, data in enumerate((b"one", b"two", b"one"))]
    rows = [(name, "a.parquet", f"caption {n}", "val" if n else "train") for n, name in enumerate(names)]
    assert count(tmp_path, rows) == Shared(2, 0, 2, 0, compared=2, by_content=1)


@pytest.mark.parametrize(
    ("shared", "refused"),
    [
        (Shared(0, 0, 0, 0), False),
        (Shared(100, 10, 500, 250), False),
        (Shared(100, 11, 500, 0), True),
        (Shared(100, 6, 500, 0, compared=50, by_content=3), True),
        (Shared(100, 0, 500, 251), True),
    ],
)
def test_what_is_refused(shared: Shared, refused: bool) -> None:
    assert shared.refused is refused
    assert bool(shared.notices) is any((shared.by_id, shared.by_content, shared.equal_captions))
