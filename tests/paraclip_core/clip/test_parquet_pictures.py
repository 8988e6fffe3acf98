"""Pictures inside of Parquet: found by row in any order, in memory that does not grow, damage told."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.random import default_rng

from paraclip_core.clip.featurize import Featurizer, ImageFile
from paraclip_core.clip.images import ImageArchive, ParquetPictures
from paraclip_core.clip.model import ClipModel
from paraclip_core.errors import InputError
from paraclip_core.pictures import PICTURE_ROWS, holds_pictures, picture_column, picture_name, picture_place

ROWS = 5 * PICTURE_ROWS
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _data(row: int) -> bytes:
    return bytes([row]) * (row + 1)


def _written(path: Path, group: int, columns: dict[str, Any] | None = None) -> Path:
    structs = pa.array([{"bytes": _data(row), "path": None} for row in range(ROWS)], STRUCT)
    pq.write_table(pa.table(columns or {"image": structs}), path, row_group_size=group)
    return path


@pytest.mark.parametrize("group", [3, PICTURE_ROWS, ROWS])
def test_any_order_and_several_threads(tmp_path: Path, group: int) -> None:
    with ImageArchive(_written(tmp_path / "a.parquet", group)) as archive, ThreadPoolExecutor(4) as pool:
        names = archive.names()
        assert names == sorted(names) and [picture_place(name) for name in names] == [("image", n) for n in range(ROWS)]
        for order in (range(ROWS), range(ROWS - 1, -1, -1), default_rng(0).permutation(ROWS).tolist()):
            assert list(pool.map(archive.read, [names[row] for row in order])) == [_data(row) for row in order]
        assert archive.read(picture_name("image", 7, "0" * 32)) == _data(7)


def test_in_order_each_row_group_is_begun_once(
    tmp_path: Path, tiny: Callable[..., ClipModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    begin = ParquetPictures._windows
    monkeypatch.setattr(ParquetPictures, "_windows", lambda self, name, n: (begun.append(n), begin(self, name, n))[1])
    path = _written(tmp_path / "a.parquet", ROWS // 2)
    files = [ImageFile(str(row), picture_name("image", row, "0" * 32), path.name) for row in range(ROWS)]
    with Featurizer(tiny(), lambda name: ImageArchive(tmp_path / name), batch_size=4, workers=4) as featurizer:
        assert len(featurizer.encode(files).rejected) == ROWS
    assert begun == [0, 1], "threads that ask out of order would read a row group again and again"


def test_names_that_are_no_pictures(tmp_path: Path) -> None:
    columns = {"image": pa.array([_data(row) for row in range(ROWS - 1)] + [None], pa.binary()), "n": list(range(ROWS))}
    with ImageArchive(_written(tmp_path / "a.parquet", 4, columns)) as archive:
        for name in (
            "1.jpg",
            "",
            "image[-1]",
            f"image[{ROWS}]",
            f"image[{ROWS - 1}]",
            "n[0]",
            "absent[0]",
            "image[0]x",
        ):
            with pytest.raises(InputError, match=re.escape(f"a.parquet has no image {name!r}")):
                archive.read(name)
        assert archive.read("image[0]") == _data(0)


def test_which_column_holds_the_pictures(tmp_path: Path) -> None:
    def column(wanted: str | None = None, /, **kinds: pa.DataType) -> str | None:
        return picture_column(pa.schema(list(kinds.items())), wanted)

    assert column(id=pa.binary(), image=STRUCT, jpg=pa.binary()) == "image"
    assert column("jpg", image=STRUCT, jpg=pa.binary()) == "jpg"
    assert column("name", name=pa.string(), jpg=pa.large_binary()) == "jpg"
    assert column(scan=STRUCT, embedding=pa.binary(), text=pa.string()) == "scan"
    assert column(embedding=pa.binary(), image=pa.string(), images=pa.list_(STRUCT)) is None
    with pytest.raises(InputError, match=r"columns 'left', 'right' hold pictures; name one in .*columns\.image"):
        column(left=STRUCT, right=STRUCT)
    (tmp_path / "no.parquet").write_bytes(b"PAR1")
    assert not holds_pictures(tmp_path / "no.parquet") and not holds_pictures(tmp_path / "absent.parquet")


def test_what_holds_no_pictures_or_is_damaged_is_told(tmp_path: Path) -> None:
    path = _written(tmp_path / "a.parquet", ROWS, {"text": ["a dog"] * ROWS, "n": list(range(ROWS))})
    with pytest.raises(InputError, match=r"no column of pictures.*it has 'text' \(string\), 'n' \(int64\)"):
        ImageArchive(path)
    twice = pa.Table.from_arrays([pa.array([b"x"]), pa.array([b"y"])], ["image", "image"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(InputError, match=r"twice\.parquet has more than one column 'image'"):
        ImageArchive(tmp_path / "twice.parquet")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match=r"a\.parquet"):
        ImageArchive(path)
    noise = pa.array([default_rng(row).bytes(50_000) for row in range(ROWS)])
    raw = bytearray(_written(path, ROWS // 2, {"image": noise}).read_bytes())
    raw[4:400] = b"\xff" * 396
    path.write_bytes(raw)
    with ImageArchive(path) as archive:
        for row in (0, 1):
            with pytest.raises(InputError, match=r"a\.parquet"):
                archive.read(picture_name("image", row))
        assert archive.read(picture_name("image", ROWS - 1)) == noise[ROWS - 1].as_py()


def test_memory_holds_a_few_rows_of_a_large_row_group(tmp_path: Path) -> None:
    noise = pa.array([default_rng(row).bytes(50_000) for row in range(400)])
    table = pa.table({"image": noise, "caption": ["a dog"] * 400})
    options: dict[str, Any] = {"use_dictionary": False, "data_page_size": 100_000, "write_batch_size": 2}
    pq.write_table(table, tmp_path / "a.parquet", **options)
    del noise, table
    before, most = pa.total_allocated_bytes(), 0
    with ImageArchive(tmp_path / "a.parquet") as archive:
        for name in archive.names():
            assert len(archive.read(name)) == 50_000
            most = max(most, pa.total_allocated_bytes() - before)
    assert 0 < most < 5_000_000, "of 20 MB"
