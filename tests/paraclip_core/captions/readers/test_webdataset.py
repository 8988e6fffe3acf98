"""Webdataset tars: samples, names that try to lead out, and tars that are cut short."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path

import pytest

from paraclip_core.captions.columns import ColumnNames
from paraclip_core.captions.options import SourceOptions
from paraclip_core.captions.readers.webdataset import read_webdataset
from paraclip_core.captions.rows import RowBatch
from paraclip_core.errors import InputError

OPTIONS = SourceOptions(path="x")


def write(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # pyright: ignore[reportArgumentType, reportCallIssue]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def one(path: Path, options: SourceOptions = OPTIONS) -> RowBatch:
    (batch,) = read_webdataset(path, options)
    return batch


SAMPLES = {
    "000000000.jpg": b"\xff\xd8" + b"x" * 3000,
    "000000000.txt": b"a dog on a beach",
    "000000000.json": json.dumps({"caption": "other", "key": "000000000", "License": "CC0", "split": "val"}).encode(),
    "000000001.json": json.dumps({"Caption": "two cats", "url": "http://b"}).encode(),
    "000000001.png": b"png",
    "sub/000000002.webp": b"webp",
    "sub/000000002.txt": "café".encode("latin-1"),
}


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz")])
def test_samples(tmp_path: Path, name: str, mode: str) -> None:
    batch = one(write(tmp_path / name, SAMPLES, mode))
    assert batch.captions == ["a dog on a beach", "two cats", "caf\udce9"]
    assert batch.image_ids == ["000000000", "000000001", "sub/000000002"]
    assert batch.image_paths == ["000000000.jpg", "000000001.png", "sub/000000002.webp"]
    assert batch.licenses == ["CC0", None, None]
    assert batch.splits == ["val", None, None]
    assert batch.rows == [0, 1, 2]


def test_another_field_of_the_json_or_several(tmp_path: Path) -> None:
    both = b'{"a": "a dog", "b": "one dog", "caption": "no"}'
    members = {"0.json": both, "0.txt": b"no", "1.json": b'{"b": "a cat"}'}
    path = write(tmp_path / "a.tar", members)
    batch = one(path, SourceOptions(path="x", columns=ColumnNames(caption=("a", "b"))))
    assert (batch.captions, batch.rows) == (["a dog", "one dog", "a cat"], [0, 0, 1])
    assert one(path, SourceOptions(path="x", columns=ColumnNames(caption="b"))).captions == ["one dog", "a cat"]


def test_bad_members_cost_one_row(tmp_path: Path) -> None:
    members = {"1.txt": b"a dog", "2.json": b"{not json", "3.jpg": b"x", "4.txt": b"x" * (17 << 20)}
    members |= {"5.json": b'{"caption": 7}', "6.json": b"[1]"}
    batch = one(write(tmp_path / "a.tar", members))
    assert batch.captions == ["a dog"]
    reasons = [(reject.row, reject.reason) for reject in batch.rejects]
    assert reasons == [
        (1, "bad_member"), (2, "missing_field"), (3, "bad_member"), (4, "wrong_type"), (5, "missing_field")
    ]  # fmt: skip


def test_names_are_only_keys(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    members = {"../../evil.jpg": b"x", "../../evil.txt": b"a dog", "/etc/passwd.txt": b"a cat"}
    link = tarfile.TarInfo("link.txt")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    path = write(inside / "a.tar", members)
    with tarfile.open(path, "a") as tar:
        tar.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    batch = one(path)
    assert batch.image_ids == ["../../evil", "/etc/passwd"]
    assert batch.image_paths == ["../../evil.jpg", None]
    assert batch.captions == ["a dog", "a cat"]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_tar_cut_short_anywhere_is_an_error(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.tar", SAMPLES).read_bytes()
    cut = tmp_path / "cut.tar"
    for size in (512 * blocks + more for blocks in range(1, 16) for more in (0, 100)):
        cut.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cut\.tar cannot be read as a tar, it is damaged or cut short"):
            list(read_webdataset(cut, OPTIONS))


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz"])
def test_a_packed_tar_cut_short_or_changed(tmp_path: Path, packing: str) -> None:
    noise = random.Random(0)
    members = {
        f"{n}.{end}": noise.randbytes(3000) if end == "jpg" else b"a dog" for n in range(99) for end in ("jpg", "txt")
    }
    whole = write(tmp_path / "a.tar", members, f"w:{packing}").read_bytes()
    path = tmp_path / f"a.tar.{packing}"
    path.write_bytes(whole)
    assert len(one(path)) == 99
    middle = len(whole) // 2
    # Noise is packed as it is, so that what is changed is a header, or a picture, whose names and captions still read.
    changed = (bytes(byte ^ 255 for byte in whole[middle : middle + size]) for size in (1, 50, 4000))
    wrong = [whole[:middle] + some + whole[middle + len(some) :] for some in changed]
    for damaged in (whole[:-40], whole[:-4], *wrong):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged or cut short"):
            list(read_webdataset(path, OPTIONS))


@pytest.mark.parametrize("data", [b"", b"no tar" * 200])
def test_what_is_no_tar_is_told_in_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(InputError, match=r"^[^\n]*a\.tar cannot be read as a tar[^\n]*$"):
        list(read_webdataset(tmp_path / "a.tar", OPTIONS))


def test_samples_that_are_not_whole_are_rejected_one_by_one(tmp_path: Path) -> None:
    members = {
        "1.jpg": b"x",
        "2.txt": b"a dog",
        "2021.01.02.txt": b"a key ends at the first dot",
        "3.jpg": b"x",
        "3.meta.json": b'{"caption": "no caption of it"}',
        "3.txt": b"a cow",
    }
    batch = one(write(tmp_path / "a.tar", members))
    assert (batch.captions, batch.image_paths, batch.rows) == (["a dog", "a cow"], [None, "3.jpg"], [1, 3])
    assert [(reject.row, reject.reason) for reject in batch.rejects] == [(0, "missing_field"), (2, "missing_field")]
