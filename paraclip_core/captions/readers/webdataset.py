"""Webdataset tar files: ``key.jpg``, ``key.txt`` and ``key.json`` one after another, as img2dataset writes them.

The image id is the key with its folder, the path is the image's member name. Names are keys and nothing else: no member
is ever written to disk or looked up outside of the tar.
"""

from __future__ import annotations

import json
import tarfile
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
    for tar, member in _members(path):
        name = PurePosixPath(member.name)
        stem, _, extension = name.name.partition(".")
        key = str(name.with_name(stem)) if stem else ""
        if not key:
            continue
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            sample = _Sample(key)
        _take(sample, tar, member, extension.lower())
    if sample is not None:
        yield sample


def _take(sample: _Sample, tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> None:
    if extension in IMAGES:
        sample.image = member.name
    elif extension in TEXTS or extension == "json":
        file = tar.extractfile(member) if member.size <= LONGEST_RECORD else None
        if file is None:
            sample.problem = f".{extension} has {member.size} bytes, at most {LONGEST_RECORD} are read"
            return
        raw = file.read()
        if len(raw) != member.size:
            raise tarfile.ReadError("unexpected end of data")
        if extension in TEXTS:
            sample.text = decode(raw)
            return
        try:
            record = json.loads(decode(raw))
        except (ValueError, RecursionError) as error:
            sample.problem = f".json is not JSON: {error}"
            return
        if isinstance(record, dict):
            sample.record = record


def _members(path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Every file of a tar in order, in constant memory, with a check that the tar has its end."""
    try:
        with tarfile.open(path, "r:*") as tar:
            while (member := tar.next()) is not None:
                # The list of members would grow with the archive; nothing here looks members up by name.
                cast(Any, tar).members.clear()
                if member.isreg():
                    yield tar, member
            end = tar.offset
        _check_end(path, end)
    except FileNotFoundError as error:
        raise InputError(f"cannot read {path}: no such file") from error
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as a tar, it is damaged or cut short: {error}; fetch it again"
        ) from error


def _check_end(path: Path, end: int) -> None:
    # tarfile takes a file that ends between two members, or goes on with garbage, for a whole one.
    with path.open("rb") as file:
        packed = file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"))
        file.seek(end)
        if not packed and file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"no end mark at byte {end}")
