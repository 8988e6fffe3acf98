"""The members of a tar as samples: what lies under one key, one sample after another, in constant memory."""

from __future__ import annotations

import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from paraclip_core.captions.readers.lines import decode
from paraclip_core.captions.rows import LONGEST_RECORD
from paraclip_core.errors import InputError
from paraclip_core.tar_file import TarFile

__all__ = ["Sample", "tar_samples"]

IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})
TEXTS = frozenset({"txt", "text", "caption"})
READ = TEXTS | {"json"}
REST = 1 << 20


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of the tar; its data only where they are wanted and not too large."""

    name: str
    key: str
    extension: str
    """All behind the first dot of its name."""
    size: int
    data: bytes | None

    @property
    def ending(self) -> str:
        """What it would be without the dots before."""
        return self.extension.rpartition(".")[2]


@dataclass(slots=True)
class Sample:
    """The members of one key."""

    key: str
    image: str | None = None
    text: str | None = None
    record: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    dotted: bool = False
    """A text alone whose name has more dots, so that it belongs to no key; `key` is its whole name."""


def tar_samples(path: Path) -> Iterator[Sample]:
    """Every sample of a tar whose keys' members are neighbours. A key ends at the first dot of the file's name.

    Raises:
        InputError: the tar is damaged or cut short.
    """
    sample: Sample | None = None
    for member in _members(path):
        if "." in member.extension:
            if member.ending in READ:
                dotted = Sample(member.name, dotted=True)
                _take(dotted, member)
                yield dotted
            continue
        if sample is None or sample.key != member.key:
            if sample is not None:
                yield sample
            sample = Sample(member.key)
        _take(sample, member)
    if sample is not None:
        yield sample


def _take(sample: Sample, member: _Member) -> None:
    if member.ending in IMAGES:
        sample.image = member.name
    elif member.ending in READ and member.data is None:
        sample.problem = f".{member.ending} has {member.size} bytes, at most {LONGEST_RECORD} are read"
    elif member.ending in TEXTS and member.data is not None:
        sample.text = decode(member.data)
    elif member.data is not None:
        try:
            record = json.loads(decode(member.data))
        except (ValueError, RecursionError) as error:
            sample.problem = f".json is not JSON: {error}"
        else:
            sample.record = record if isinstance(record, dict) else {}


def _members(path: Path) -> Iterator[_Member]:
    """Every file of a tar in order, in constant memory, with a check that the tar has its end."""
    try:
        with TarFile.open(path, "r:*") as tar:
            while (info := tar.next()) is not None:
                # The list of members would grow with the archive; nothing here looks members up by name.
                cast(Any, tar).members.clear()
                member = _member(tar, info)
                if member is not None:
                    yield member
            _check_end(cast(Any, tar).fileobj, tar.offset)
    except FileNotFoundError as error:
        raise InputError(f"cannot read {path}: no such file") from error
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        # Where no kind of tar fits, tarfile tells a line for each kind.
        what = str(error)
        if "\n" in what:
            what = "it is empty" if "'empty file'" in what else "no tar begins so"
        raise InputError(
            f"{path} cannot be read as a tar, it is damaged or cut short: {what}; fetch it again"
        ) from error


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> _Member | None:
    """A regular file with a name, None for anything else."""
    name = PurePosixPath(info.name)
    stem, _, extension = name.name.partition(".")
    if not info.isreg() or not stem:
        return None
    extension = extension.lower()
    wanted = extension.rpartition(".")[2] in READ and info.size <= LONGEST_RECORD
    file = tar.extractfile(info) if wanted else None
    return _Member(info.name, str(name.with_name(stem)), extension, info.size, None if file is None else file.read())


def _check_end(file: IO[bytes], end: int) -> None:
    """See that a tar, unpacked if need be, has its end mark at `end`, and that what packed it finds no fault."""
    # tarfile takes a file that ends between two members, or goes on with garbage, for a whole one.
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"no end mark at byte {end}")
    # The checksums of a packed one come last.
    while file.read(REST):
        pass
