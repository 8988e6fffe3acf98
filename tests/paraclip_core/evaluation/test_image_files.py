"""Where images lie: tars, folders of tars, Parquet with names, and names that several have."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from paraclip_core.clip.images import ImageArchive
from paraclip_core.errors import BenchmarkError
from paraclip_core.evaluation.image_files import archives, every_image, find_images, in_reading_order, pool_of

NAMES = ("a.png", "b.png", "c.png")


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def tar_of(path: Path, names: dict[str, int]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, number in names.items():
            info = tarfile.TarInfo(name)
            info.size = len(content := png(number))
            tar.addfile(info, io.BytesIO(content))
    return path


def parquet_of(path: Path, names: dict[str, int], column: str) -> Path:
    paths = list(names) if column == "path" else [None] * len(names)
    pictures = [{"bytes": png(number), "path": p} for number, p in zip(names.values(), paths, strict=True)]
    columns = {"image": pictures} | ({} if column == "path" else {column: list(names)})
    pq.write_table(pa.table(columns), path)
    return path


def seen(places: dict[str, tuple[Path, str]]) -> dict[str, int]:
    """Which picture each name leads to."""
    found = {}
    for name, (archive, inside) in places.items():
        with ImageArchive(archive) as images:
            found[name] = images.open(inside).getpixel((0, 0))[0]  # pyright: ignore
    return found


@pytest.mark.parametrize("column", ["path", "file_name", "image_id"])
def test_parquet_names_its_pictures(tmp_path: Path, column: str) -> None:
    path = parquet_of(tmp_path / "x.parquet", {"val2017/a.png": 1, "val2017/b.png": 2, "val2017/c.png": 3}, column)
    places = find_images(path, ["c.png", "a", "gone.png"])
    assert seen(places) == {"c.png": 3, "a": 1}
    assert in_reading_order(places) == ["a", "c.png"]
    assert len(every_image(path, places).ids) == 3 and {"a", "c.png"} < set(every_image(path, places).ids)


def test_a_folder_of_shards(tmp_path: Path) -> None:
    tar_of(tmp_path / "00000.tar", {"a.png": 1, "b.png": 2})
    tar_of(tmp_path / "00001.tar", {"c.png": 3, "a.png": 9})
    assert [file.name for file in archives(tmp_path)] == ["00000.tar", "00001.tar"]
    assert seen(find_images(tmp_path, NAMES)) == {"a.png": 1, "b.png": 2, "c.png": 3}
    assert list(pool_of(tmp_path / "captions.json", NAMES, tmp_path).ids) == list(NAMES)


def test_what_is_no_archive_of_images_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar")
    with pytest.raises(BenchmarkError, match=r"x\.tar is not a whole, uncompressed tar"):
        find_images(tmp_path / "x.tar", NAMES)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(BenchmarkError, match=r"x\.parquet cannot be read as Parquet"):
        find_images(tmp_path / "x.parquet", NAMES)
    with pytest.raises(BenchmarkError, match=r"lacks 1 of 3 images of captions\.json, first 'c\.png'"):
        pool_of(tmp_path / "captions.json", NAMES, tar_of(tmp_path / "y.tar", {"a.png": 1, "b.png": 2}))
