"""Webdataset tar files: ``key.jpg``, ``key.txt`` and ``key.json`` one after another, as img2dataset writes them.

The image id is the key with its folder, the path is the image's member name. Names are keys and nothing else: no member
is ever written to disk or looked up outside of the tar. As in every webdataset, a key ends at the first dot of a
file's name, and the files of a key lie side by side; a tar made otherwise is an error, so that no caption is lost.

A tar that is damaged, cut short or out of order, or holds no caption, raises InputError.
"""

from __future__ import annotations

import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, cast

from paraclip_core.captions.readers.columns import CAPTION, LICENCE, SPLIT, plain_name
from paraclip_core.captions.readers.text import decode
from paraclip_core.captions.rows import LONGEST_RECORD, Batcher, RowBatch
from paraclip_core.config import SourceOptions
from paraclip_core.errors import InputError
from paraclip_core.pictures import PICTURES
from paraclip_core.tar_file import TarFile

IMAGES = frozenset(ending[1:] for ending in PICTURES)
TEXTS = frozenset({"txt", "text", "caption"})
READ = TEXTS | {"json"}
DOTS = "a key ends at the first dot of a file's name, so this is no key's caption; name it without more dots"
REMEMBERED = 1024
"""Keys with an image or a caption alone. A tar that is out of order has no others among its first."""


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
class _Sample:
    """The members of one key."""

    key: str
    image: str | None = None
    text: str | None = None
    record: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    dotted: bool = False
    """A text alone whose name has more dots, so that it belongs to no key; `key` is its whole name."""


def read_webdataset(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    """Every sample with a caption (``.txt``, otherwise the caption field of ``.json``) as a row, counted from 0."""
    batcher, number, captions = Batcher(), 0, 0
    dotted: str | None = None
    alone: dict[str, bool] = {}
    for sample in _samples(path):
        caption = _caption(sample, options)
        if sample.dotted and caption is None and not sample.problem:
            continue
        if sample.dotted:
            dotted = dotted or sample.key
            raw = caption if isinstance(caption, str) else None
            batcher.reject(number, "bad_member", f"{sample.key}: {DOTS}", raw)
        else:
            _check_order(alone, sample, caption is not None, path)
            _add(batcher, number, sample, caption, options)
            captions += caption is not None
        number += 1
        yield from batcher.full()
    if not captions:
        why = f"{dotted}: {DOTS}" if dotted else "A tar of images alone belongs in data.sources[].images"
        raise InputError(
            f"{path} holds no caption among its {number} keys; expected key.txt or key.json beside key.jpg. {why}"
        )
    yield from batcher.rest()


def _caption(sample: _Sample, options: SourceOptions) -> Any:
    columns, record = options.columns.captions, sample.record
    if not columns and sample.text is not None:
        return sample.text
    if len(columns) > 1:
        texts = [_first(record, (name,)) for name in columns]
        return [text for text in texts if text is not None] or None
    return _first(record, columns or CAPTION)


def _check_order(alone: dict[str, bool], sample: _Sample, captioned: bool, path: Path) -> None:
    """Remember an image or a caption alone; the other one of its key must not have come before."""
    if sample.problem or captioned == (sample.image is not None):
        return
    if alone.get(sample.key, captioned) != captioned:
        raise InputError(
            f"{path} is out of order: other files lie between the image and the caption of {sample.key!r}, expected "
            "the files of a key side by side; make it again sorted by name (tar --sort=name -cf NAME.tar FOLDER)"
        )
    if len(alone) < REMEMBERED:
        alone[sample.key] = captioned


def _add(batcher: Batcher, number: int, sample: _Sample, caption: Any, options: SourceOptions) -> None:
    columns, record = options.columns, sample.record
    if sample.problem:
        batcher.reject(number, "bad_member", f"{sample.key}: {sample.problem}")
    elif caption is None:
        batcher.reject(number, "missing_field", f"{sample.key}: neither .txt nor a caption in .json")
    else:
        split = _first(record, (columns.split,) if columns.split else SPLIT)
        licence = _first(record, (columns.license,) if columns.license else LICENCE)
        batcher.add(number, caption, sample.key, sample.image, split, licence)


def _first(record: dict[str, Any], names: Sequence[str]) -> Any:
    """The first of the named fields that holds something: of exactly that name, or else of one like it."""
    for name in names:
        if record.get(name) is not None:
            return record[name]
    alike = {plain_name(name): value for name, value in record.items() if value is not None}
    return next((alike[plain] for plain in map(plain_name, names) if plain in alike), None)


def _samples(path: Path) -> Iterator[_Sample]:
    """Every sample of a tar whose keys' members are neighbors. A key ends at the first dot of the file's name."""
    sample: _Sample | None = None
    for member in _members(path):
        if "." in member.extension:
            if member.ending in READ:
                dotted = _Sample(member.name, dotted=True)
                _take(dotted, member)
                yield dotted
            continue
        if sample is None or sample.key != member.key:
            if sample is not None:
                yield sample
            sample = _Sample(member.key)
        _take(sample, member)
    if sample is not None:
        yield sample


def _take(sample: _Sample, member: _Member) -> None:
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
            tar.check_end()
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
    is_read = extension.rpartition(".")[2] in READ and info.size <= LONGEST_RECORD
    file = tar.extractfile(info) if is_read else None
    return _Member(info.name, str(name.with_name(stem)), extension, info.size, None if file is None else file.read())
