"""Webdataset tar files: ``key.jpg``, ``key.txt`` and ``key.json`` one after another, as img2dataset writes them.

The image id is the key with its folder, the path is the image's member name. Names are only keys: no member is
ever written to disk or looked up outside the tar. As in every webdataset, a key ends at the first dot of a
file's name, and the files of a key are adjacent.

A tar that is damaged or cut short raises InputError.
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

from paraclip_core.captions.columns import CAPTION, LICENSE, SPLIT, match_column
from paraclip_core.captions.options import SourceOptions
from paraclip_core.captions.readers.lines import LONGEST_RECORD, decode
from paraclip_core.captions.rows import Batcher, RowBatch
from paraclip_core.errors import InputError
from paraclip_core.pictures import PICTURES
from paraclip_core.tars import check_end

IMAGES = frozenset(ending[1:] for ending in PICTURES)
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
    """Yield every sample with a caption (``.txt``, or else the caption field of ``.json``), numbered from 0."""
    batcher, columns = Batcher(), options.columns
    for number, sample in enumerate(_samples(path)):
        caption = _caption(sample, columns.captions)
        if sample.problem:
            batcher.reject(number, "bad_member", f"{sample.key}: {sample.problem}")
        elif caption is None:
            batcher.reject(number, "missing_field", f"{sample.key}: neither .txt nor a caption in .json")
        else:
            split = _first(sample.record, (columns.split,) if columns.split else SPLIT)
            license = _first(sample.record, (columns.license,) if columns.license else LICENSE)
            batcher.add(number, caption, sample.key, sample.image, split, license)
        yield from batcher.full()
    yield from batcher.rest()


def _caption(sample: _Sample, columns: Sequence[str]) -> Any:
    if not columns and sample.text is not None:
        return sample.text
    if len(columns) > 1:
        texts = [_first(sample.record, (name,)) for name in columns]
        return [text for text in texts if text is not None] or None
    return _first(sample.record, columns or CAPTION)


def _first(record: dict[str, Any], names: Sequence[str]) -> Any:
    """The first of the named fields that has a value, by its exact name or else by a similar one."""
    name = match_column([name for name, value in record.items() if value is not None], *names)
    return None if name is None else record[name]


def _samples(path: Path) -> Iterator[_Sample]:
    """Every sample of a tar, in constant memory, checking that the tar is complete."""
    sample: _Sample | None = None
    try:
        with tarfile.open(path, "r:*") as tar:
            while (info := tar.next()) is not None:
                # The member list would grow with the archive; nothing here looks members up by name.
                cast(Any, tar).members.clear()
                name = PurePosixPath(info.name)
                stem, _, extension = name.name.partition(".")
                if not info.isreg() or not stem:
                    continue
                key = str(name.with_name(stem))
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample
                    sample = _Sample(key)
                _take(sample, tar, info, extension.lower())
            check_end(tar)
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        # If no kind of tar fits, tarfile reports a line for each kind.
        what = str(error).partition("\n")[0]
        raise InputError(
            f"{path} cannot be read as a tar, it is damaged or cut short: {what}; fetch it again"
        ) from error
    if sample is not None:
        yield sample


def _take(sample: _Sample, tar: tarfile.TarFile, info: tarfile.TarInfo, extension: str) -> None:
    if extension in IMAGES:
        sample.image = info.name
    elif extension not in TEXTS | {"json"}:
        return
    elif info.size > LONGEST_RECORD:
        sample.problem = f".{extension} has {info.size} bytes, at most {LONGEST_RECORD} are read"
    elif (file := tar.extractfile(info)) is not None:
        text = decode(file.read())
        if extension in TEXTS:
            sample.text = text
            return
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            sample.problem = f".json is not JSON: {error}"
        else:
            sample.record = record if isinstance(record, dict) else {}
