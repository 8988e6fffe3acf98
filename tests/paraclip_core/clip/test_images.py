"""Images out of tars and folders, damaged and hostile ones included."""

from __future__ import annotations

import errno
import io
import os
import re
import tarfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.random import default_rng
from PIL import EpsImagePlugin, Image

from paraclip_core.clip.featurize import Featurizer, ImageFile
from paraclip_core.clip.images import ImageArchive, ParquetPictures, decode_image
from paraclip_core.clip.model import ClipModel
from paraclip_core.errors import InputError
from paraclip_core.pictures import PICTURE_ROWS, holds_pictures, picture_column, picture_name, picture_place

ROWS = 5 * PICTURE_ROWS
Tiny = Callable[..., ClipModel]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _png(color: str = "red", mode: str = "RGB", size: tuple[int, int] = (9, 7)) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, color if mode == "RGB" else 3).save(file, "PNG")
    return file.getvalue()


def _tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_tar_and_folder_answer_alike(tmp_path: Path) -> None:
    members = [("b/two.png", _png("blue")), ("one.png", _png())]
    tar = ImageArchive(_tar(tmp_path / "x.tar", [(f"./{name}", data) for name, data in members]))
    folder = tmp_path / "folder"
    for name, data in members:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    plain = ImageArchive(folder)
    assert sorted(tar.names()) == plain.names() == ["b/two.png", "one.png"]
    for name, data in members:
        assert tar.read(name) == plain.read(name) == plain.read(f"./{name}") == data
    for archive in (tar, plain):
        with pytest.raises(InputError, match=r"three\.png"):
            archive.read("three.png")
        archive.close()


def test_names_never_lead_out(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(_png())
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    tar = _tar(tmp_path / "x.tar", [("../secret.png", b"member"), ("/etc/passwd", b"member too")])
    with ImageArchive(folder) as plain, ImageArchive(tar) as packed:
        for name in ("../secret.png", "link.png", str(tmp_path / "secret.png"), "a/../../secret.png", "x\0y", ""):
            with pytest.raises(InputError):
                plain.read(name)
            assert not plain.has(name), "what cannot be read is missing before anything is paid for"
        assert packed.read("../secret.png") == b"member" and packed.read("/etc/passwd") == b"member too"
        with pytest.raises(InputError):
            packed.read("/etc/hostname")


def test_a_snapshot_of_the_hub_links_to_its_blobs(tmp_path: Path) -> None:
    blobs, pictures = tmp_path / "datasets--me--x" / "blobs", tmp_path / "datasets--me--x" / "snapshots" / "1" / "pics"
    for folder in (blobs, pictures):
        folder.mkdir(parents=True)
    (blobs / "abc").write_bytes(_png())
    (tmp_path / "elsewhere.png").write_bytes(_png())
    (pictures / "1.png").symlink_to("../../../blobs/abc")
    (pictures / "2.png").symlink_to(tmp_path / "elsewhere.png")
    with ImageArchive(pictures) as archive:
        assert archive.read("1.png") == _png() and [archive.has(name) for name in ("1.png", "2.png")] == [True, False]


def test_a_disk_at_fault_is_not_taken_for_a_missing_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "one.png").write_bytes(_png())
    with ImageArchive(tmp_path) as folder, ImageArchive(_tar(tmp_path / "x.tar", [("one.png", b"member")])) as tar:
        monkeypatch.setattr(os, "pread", failing)
        monkeypatch.setattr(Path, "read_bytes", failing)
        with pytest.raises(OSError, match="Input/output error"):
            folder.read("one.png")
        with pytest.raises(OSError, match=r"Input/output error: '.*x\.tar'"):
            tar.read("one.png")


def test_what_is_no_whole_plain_tar_is_reported(tmp_path: Path) -> None:
    whole = _tar(tmp_path / "x.tar", [("a.bin", b"x" * 600), ("b.bin", b"y" * 900)]).read_bytes()
    for keep in (200, 700, 1536, 2000, 3072):
        (tmp_path / "cut.tar").write_bytes(whole[:keep])
        with pytest.raises(InputError, match=r"cut\.tar is not a whole"):
            ImageArchive(tmp_path / "cut.tar")
    (tmp_path / "text.tar").write_bytes(b"hello " * 500)
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "text.tar", "a")
    for name, message in (("text.tar", "uncompressed tar"), ("x.tar.gz", "uncompressed tar"), ("gone.tar", "gone.tar")):
        with pytest.raises(InputError, match=message):
            ImageArchive(tmp_path / name)


def test_modes_become_rgb_and_damage_is_named() -> None:
    for mode in ("L", "P", "1", "RGBA", "I;16"):
        assert decode_image(_png(mode=mode), "x").mode == "RGB"
    see_through = io.BytesIO()
    Image.new("P", (9, 7), 3).save(see_through, "PNG", transparency=b"\x00\x80\xff")
    assert decode_image(see_through.getvalue(), "x").mode == "RGB"
    data = _png()
    for damaged in (b"", b"GIF89a", data[:40], data[: len(data) // 2], b"\xff\xd8\xff" + data):
        with pytest.raises(InputError, match="the name") as caught:
            decode_image(damaged, "the name")
        assert " at 0x" not in str(caught.value), "an address would differ between two runs"


def bomb() -> bytes:
    """A small file whose header says that it is 60,000 pixels wide and high."""
    header = bytearray(_png())
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    return bytes(header)


def test_absurdly_large_images_and_lines_are_refused() -> None:
    refused = {bomb(): "DecompressionBomb"}
    refused |= {_png(size=(w, h)): f": .*{w} x {h} pixels" for w, h in ((1, 65_000), (20_000, 1))}
    for data, message in refused.items():
        with pytest.raises(InputError, match=f"a.png cannot be decoded as an image.*{message}"):
            decode_image(data, "a.png")
    assert decode_image(_png(size=(1, 1000)), "b.png").size == (1, 1000)


def test_a_bare_file_name_finds_the_one_member_that_has_it(data_root: Path) -> None:
    with ImageArchive(data_root / "flickr8k/images_128.tar") as archive:
        member = archive.names()[0]
        assert "/" in member
        assert archive.read(Path(member).name) == archive.read(member)


def test_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, ran = tmp_path / "gs", tmp_path / "ran"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", str(program))
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(InputError, match=r"a\.jpg cannot be decoded as an image: its format is unknown"):
        decode_image(data, "a.jpg")
    assert not ran.exists()


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


def test_in_order_each_row_group_is_begun_once(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
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
        rows = ("-1", str(ROWS), str(ROWS - 1))
        for name in ("1.jpg", "", *(f"image[{row}]" for row in rows), "n[0]", "absent[0]", "image[0]x"):
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


def test_what_holds_no_pictures_or_is_damaged_is_reported(tmp_path: Path) -> None:
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
