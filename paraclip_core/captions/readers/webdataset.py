"""Webdataset tar files: ``key.jpg``, ``key.txt`` and ``key.json`` one after another, as img2dataset writes them.

The image id is the key with its folder, the path is the image's member name. Names are keys and nothing else: no member
is ever written to disk or looked up outside of the tar. As in every webdataset, a key ends at the first dot of a
file's name, and the files of a key lie side by side; a tar made otherwise is an error, so that no caption is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from paraclip_core.captions.readers.columns import CAPTION, LICENCE, SPLIT, plain_name
from paraclip_core.captions.readers.tar_samples import Sample, tar_samples
from paraclip_core.captions.rows import Batcher, RowBatch
from paraclip_core.config import SourceOptions
from paraclip_core.errors import InputError

__all__ = ["read_webdataset"]

DOTS = "a key ends at the first dot of a file's name, so this is no key's caption; name it without more dots"
REMEMBERED = 1024
"""Keys with an image or a caption alone. A tar that is out of order has no others among its first."""


def read_webdataset(path: Path, options: SourceOptions) -> Iterator[RowBatch]:
    """Every sample with a caption (``.txt``, otherwise the caption field of ``.json``) as a row, counted from 0.

    Raises:
        InputError: the tar is damaged, cut short or out of order, or no sample in it has a caption.
    """
    batcher, number, captions = Batcher(), 0, 0
    dotted: str | None = None
    alone: dict[str, bool] = {}
    for sample in tar_samples(path):
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


def _caption(sample: Sample, options: SourceOptions) -> Any:
    wanted, record = options.columns.captions, sample.record
    if not wanted and sample.text is not None:
        return sample.text
    if len(wanted) > 1:
        texts = [_first(record, (name,)) for name in wanted]
        return [text for text in texts if text is not None] or None
    return _first(record, wanted or CAPTION)


def _check_order(alone: dict[str, bool], sample: Sample, captioned: bool, path: Path) -> None:
    """Remember an image or a caption alone.

    Raises:
        InputError: the other one of its key came before.
    """
    if sample.problem or captioned == (sample.image is not None):
        return
    if alone.get(sample.key, captioned) != captioned:
        raise InputError(
            f"{path} is out of order: other files lie between the image and the caption of {sample.key!r}, expected "
            "the files of a key side by side; make it again sorted by name (tar --sort=name -cf NAME.tar FOLDER)"
        )
    if len(alone) < REMEMBERED:
        alone[sample.key] = captioned


def _add(batcher: Batcher, number: int, sample: Sample, caption: Any, options: SourceOptions) -> None:
    columns, record = options.columns, sample.record
    if sample.problem:
        batcher.reject(number, "bad_member", f"{sample.key}: {sample.problem}")
    elif caption is None:
        batcher.reject(number, "missing_field", f"{sample.key}: neither .txt nor a caption in .json")
    else:
        split = _first(record, (columns.split,) if columns.split else SPLIT)
        licence = _first(record, (columns.licence,) if columns.licence else LICENCE)
        batcher.add(number, caption, sample.key, sample.image, split, licence)


def _first(record: dict[str, Any], names: Sequence[str]) -> Any:
    """The first of the named fields that holds something: of exactly that name, or else of one like it."""
    for name in names:
        if record.get(name) is not None:
            return record[name]
    alike = {plain_name(name): value for name, value in record.items() if value is not None}
    return next((alike[plain] for plain in map(plain_name, names) if plain in alike), None)
