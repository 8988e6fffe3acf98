"""Tars with headers that cannot be true."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pytest

from paraclip_core.captions.readers.webdataset import read_webdataset
from paraclip_core.clip.images import ImageArchive
from paraclip_core.config import SourceOptions
from paraclip_core.errors import InputError


def _member(kind: bytes, data: bytes, told: int | None = None, name: str = "0.txt") -> bytes:
    """A member whose header tells of another size than it has."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data) if told is None else told
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _pax(text: str) -> bytes:
    record = f" {text}\n"
    return _member(tarfile.XHDTYPE, f"{len(record) + 2}{record}".encode())


FIRST = _member(tarfile.REGTYPE, b"a dog on a beach", name="first.txt")
LAST = _member(tarfile.REGTYPE, b"a cat") + bytes(2 * tarfile.BLOCKSIZE)
IMPOSSIBLE = {
    "a size below 0": _member(tarfile.REGTYPE, b"", -512),
    "a size below 0 in words": _pax("size=-1536"),
    "a size beyond any file": _pax(f"size={10**30}"),
    "a name of a size below 0": _member(tarfile.GNUTYPE_LONGNAME, b"", -1024),
    "a name of a name of a name": _member(tarfile.GNUTYPE_LONGNAME, b"a\0") * 1500,
    "a name of gigabytes": _member(tarfile.GNUTYPE_LONGNAME, b"a\0", 4 << 30),
    "holes that are no numbers": _pax("GNU.sparse.map=a,b"),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_an_impossible_header_is_told(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(FIRST + IMPOSSIBLE[what] + LAST)
    with pytest.raises(InputError, match=r"a\.tar is not a whole, uncompressed tar file"):
        ImageArchive(path)
    with pytest.raises(InputError, match=r"a\.tar cannot be read as a tar, it is damaged"):
        list(read_webdataset(path, SourceOptions(path="a.tar")))


def test_a_long_name_that_unpacks_to_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(FIRST + _member(tarfile.XHDTYPE, bytes(64 << 20)) + LAST, 1))
    with pytest.raises(InputError, match="a header of 67108864 bytes"):
        list(read_webdataset(path, SourceOptions(path="a.tar.gz")))
