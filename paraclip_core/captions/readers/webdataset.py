"""Webdataset tar files: ``key.jpg``, ``key.txt`` and ``key.json`` one after another, as img2dataset writes them.

The image id is the key with its folder, the path is the image's member name. Names are keys and nothing else: no member
is ever written to disk or looked up outside of the tar.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, cast

from paraclip_core.captions.readers.columns import CAPTION, LICENCE, SPLIT
from paraclip_core.captions.readers.lines import decode
from paraclip_core.captions.readers.rows import LONGEST_RECORD, Batcher, RowBatch
from paraclip_core.config import SourceOptions
from paraclip_core.errors import InputError

__all__ = ["read_webdataset"]

IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})
TEXTS = frozenset({"txt", "text", "caption"})
READ = TEXTS | {"json"}


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of the tar; its data only where they are wanted and not too large."""

    name: str
    key: str
    extension: str
    size: int
    data: bytes | None


@dataclass(slots=True)
class _Sample:
    """The members of one key."""

    key: str
    image: str | None = None
    text: str | None = None
    record: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def read_webdataset(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    """Every sample with a caption (``.txt``, otherwise the caption field of ``.json``) as a row, counted from 0.

    Raises:
        InputError: the tar is damaged or cut short, or no sample in it has a caption.
    """
    batcher, number, captions = Batcher(), 0, 0
    for number, sample in enumerate(_samples(path)):
        captions += _add(batcher, number, sample, options)
        yield from batcher.full()
    if not captions:
        raise InputError(
            f"{path} holds no caption among its {number + 1} keys; expected key.txt or key.json beside key.jpg. "
            "A tar of images alone belongs in data.sources[].images"
        )
    yield from batcher.rest()


def _add(batcher: Batcher, number: int, sample: _Sample, options: SourceOptions) -> bool:
    """Add a sample as a row; returns whether it has a caption."""
    columns, record = options.columns, sample.record
    caption = sample.text if columns.caption is None else None
    if caption is None:
        caption = _first(record, (columns.caption,) if columns.caption else CAPTION)
    if sample.problem:
        batcher.reject(number, "bad_member", f"{sample.key}: {sample.problem}")
    elif caption is None:
        batcher.reject(number, "missing_field", f"{sample.key}: neither .txt nor a caption in .json")
    else:
        split = _first(record, (columns.split,) if columns.split else SPLIT)
        licence = _first(record, (columns.licence,) if columns.licence else LICENCE)
        batcher.add(number, caption, sample.key, sample.image, split, licence)
    return caption is not None


def _first(record: dict[str, Any], names: tuple[str | None, ...]) -> Any:
    return next((record[name] for name in names if name is not None and record.get(name) is not None), None)


def _samples(path: Path) -> Iterator[_Sample]:
    sample: _Sample | None = None
    for member in _members(path):
        if sample is None or sample.key != member.key:
            if sample is not None:
                yield sample
            sample = _Sample(member.key)
        _take(sample, member)
    if sample is not None:
        yield sample


def _take(sample: _Sample, member: _Member) -> None:
    if member.extension in IMAGES:
        sample.image = member.name
    elif member.extension in READ and member.data is None:
        sample.problem = f".{member.extension} has {member.size} bytes, at most {LONGEST_RECORD} are read"
    elif member.extension in TEXTS and member.data is not None:
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
        with tarfile.open(path, "r:*") as tar:
            while (info := tar.next()) is not None:
                # The list of members would grow with the archive; nothing here looks members up by name.
                cast(Any, tar).members.clear()
                member = _member(tar, info)
                if member is not None:
                    yield member
            end = tar.offset
        _check_end(path, end)
    except FileNotFoundError as error:
        raise InputError(f"cannot read {path}: no such file") from error
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read as a tar, it is damaged or cut short: {error}; fetch it again"
        ) from error


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> _Member | None:
    """A regular file with a name, None for anything else."""
    name = PurePosixPath(info.name)
    stem, _, extension = name.name.partition(".")
    if not info.isreg() or not stem:
        return None
    extension = extension.lower()
    wanted = extension in READ and info.size <= LONGEST_RECORD
    file = tar.extractfile(info) if wanted else None
    return _Member(info.name, str(name.with_name(stem)), extension, info.size, None if file is None else file.read())


def _check_end(path: Path, end: int) -> None:
    # tarfile takes a file that ends between two members, or goes on with garbage, for a whole one.
    with path.open("rb") as file:
        packed = file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"))
        file.seek(end)
        if not packed and file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"no end mark at byte {end}")
