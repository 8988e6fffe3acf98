"""From a source file to accepted captions and rejects: cleaned, filtered, de-duplicated, tokenized, in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from pathlib import PurePosixPath
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from paraclip_core import tables
from paraclip_core.captions.clean import CaptionFilter, clean, configured_split, split_name
from paraclip_core.captions.counts import Outcome
from paraclip_core.captions.dedup import Keys, KeySet, caption_ids, id_keys, text_keys
from paraclip_core.captions.readers.registry import READERS, detect, read
from paraclip_core.captions.readers.rows import Reject, RowBatch
from paraclip_core.captions.rejects import drop_undecodable, reject_batch, reject_row
from paraclip_core.captions.sources import SourceFile
from paraclip_core.captions.tokens import Tokenizer
from paraclip_core.config import DataOptions
from paraclip_core.errors import InputError

__all__ = ["BY_CONTENT", "UNIQUE", "CaptionPipeline"]

T = TypeVar("T")

UNIQUE = "give one of the sources a data.sources[].image_prefix"
"""What mends a clash of image ids."""
BY_CONTENT = "name the column of pictures in data.sources[].columns.image to have ids of their contents"
"""What mends it for pictures inside of Parquet."""
_NO_LICENCE = frozenset({"?", "unknown", "none", "null"})


class CaptionPipeline:
    """Takes source files one after another; what it has seen in one counts as a duplicate in the next.

    Memory: the keys of the duplicate filter (8 bytes an accepted caption, and 8 or 16 an image with an archive) and
    one batch.
    """

    def __init__(self, options: DataOptions, files: Sequence[SourceFile]) -> None:
        """Prepare for `files`, whose archives of images decide whether image ids can clash.

        Raises:
            ConfigError: a source's split is none of train, val and test.
            ModelError: the tokenizer's vocabulary is missing.
        """
        for file in files:
            configured_split(file.options.split)
        self._options = options
        self._filter = CaptionFilter(options)
        self._tokenizer = Tokenizer(options.context_length)
        self._captions, self._images, self._owned = KeySet(), KeySet(), KeySet()
        self._pictures = {file.name for file in files if file.pictures}
        # One file alone names each image as it likes, but nothing but their ids says which pictures are the same.
        self._clashes = bool(self._pictures) or sum(file.images is not None for file in files) > 1

    @property
    def images(self) -> int:
        """Different images of accepted captions whose archive is known."""
        return len(self._images)

    def run(self, file: SourceFile) -> Iterator[Outcome]:
        """Accepted and rejected rows of a file.

        With `on_error: skip` a file that is bad as a whole gives one reject without a row; the rows before the damage
        are kept.

        Raises:
            InputError: the file is missing or bad as a whole, with `on_error: stop`.
        """
        try:
            form = file.form if file.form in READERS else detect(file.path) if file.path.is_file() else "unknown"
            for batch in read(file.path, file.options, form):
                yield self._outcome(batch, file)
        except InputError as error:
            if self._options.on_error == "stop":
                raise
            # The path differs between machines, and equal inputs must give equal bytes.
            detail = str(error).replace(str(file.path), file.name)
            yield self._outcome(RowBatch(rejects=[Reject(None, "unreadable", detail)]), file)

    def restore(self, accepted: pa.RecordBatch) -> None:
        """Remember captions that an earlier try accepted (columns caption_id, image_id, image_path and images)."""
        self._captions.add(id_keys(accepted.column("caption_id").to_pylist()))
        ids, paths, groups = (accepted.column(name).to_pylist() for name in ("image_id", "image_path", "images"))
        for group in sorted({group for group in groups if group is not None}):
            mine = [of == group for of in groups]
            self._own(_kept(ids, mine), _kept(paths, mine), group)

    def _outcome(self, batch: RowBatch, file: SourceFile) -> Outcome:
        rejects = list(batch.rejects)
        drop_undecodable(batch, rejects)
        if prefix := file.options.image_prefix:
            batch.image_ids = [None if image is None else prefix + image for image in batch.image_ids]
        default = file.split
        splits = [default if split is None else split_name(split) for split in batch.splits]
        texts, keep = self._judge(batch, splits, rejects)
        image_ids = [batch.image_ids[n] for n in keep]
        taken = self._taken(image_ids, [batch.image_paths[n] for n in keep], file.images)
        if any(taken):
            for n in _kept(keep, taken):
                image = f"image id {str(batch.image_ids[n])[:200]!r}"
                mend = BY_CONTENT if file.pictures else UNIQUE
                rejects.append(reject_row(batch, n, "image_conflict", f"{image} already names another image; {mend}"))
            free = [not is_taken for is_taken in taken]
            texts, keep, image_ids = _kept(texts, free), _kept(keep, free), _kept(image_ids, free)
        ids = caption_ids(image_ids, texts)
        new = self._captions.add(id_keys(ids))
        if not new.all():
            for n in _kept(keep, ~new):
                rejects.append(reject_row(batch, n, "duplicate", "the same caption of the same image came before"))
            ids, texts, keep = _kept(ids, new), _kept(texts, new), _kept(keep, new)
        accepted = self._accepted(batch, file, ids, texts, keep, splits)
        self._own([batch.image_ids[n] for n in keep], [batch.image_paths[n] for n in keep], file.images)
        return Outcome(accepted, reject_batch(rejects, file.name))

    def _judge(self, batch: RowBatch, splits: list[str | None], rejects: list[Reject]) -> tuple[list[str], list[int]]:
        """Cleaned texts of the rows that pass the filters, and where they are in the batch."""
        texts: list[str] = []
        keep: list[int] = []
        longest, judge = self._filter.max_chars, self._filter.words
        for n, raw in enumerate(batch.captions):
            if len(raw) > longest:
                rejects.append(reject_row(batch, n, *self._filter.length(raw)))
                continue
            text = clean(raw)
            problem = judge(text)
            if problem is not None:
                rejects.append(reject_row(batch, n, *problem))
            elif splits[n] is None:
                detail = f"split {str(batch.splits[n])[:80]!r}, expected train, val or test"
                rejects.append(reject_row(batch, n, "unknown_split", detail))
            else:
                texts.append(text)
                keep.append(n)
        return texts, keep

    def _taken(self, ids: list[str | None], paths: list[str | None], group: str | None) -> list[bool]:
        """For each image of an archive, whether its id names another one already."""
        if group is None or not self._clashes:
            return [False] * len(ids)
        unique = _distinct(ids, paths)
        places = _places(unique, self._salt(group))
        known = self._images.contains(text_keys([image for image, _ in unique]))
        if group in self._pictures:
            known |= _seconds([image for image, _ in unique], places)
        clashing = set(compress(unique, known & ~self._owned.contains(places)))
        return [pair in clashing for pair in zip(ids, paths, strict=True)]

    def _own(self, ids: list[str | None], paths: list[str | None], group: str | None) -> None:
        """Remember the images of accepted captions, and where they are if ids can clash."""
        if group is None or not (unique := _distinct(ids, paths)):
            return
        self._images.add(text_keys([image for image, _ in unique]))
        if self._clashes:
            self._owned.add(_places(unique, self._salt(group)))

    def _salt(self, group: str) -> str:
        """What tells images of one name in two archives apart. A picture's name says what it is, wherever it lies."""
        return "" if group in self._pictures else group

    def _accepted(
        self,
        batch: RowBatch,
        file: SourceFile,
        ids: list[bytes],
        texts: list[str],
        keep: list[int],
        splits: list[str | None],
    ) -> pa.RecordBatch:
        licences, default = batch.licences, file.options.licence
        count = len(keep)
        own = [licences[n] for n in keep]
        paths = [batch.image_paths[n] for n in keep] if file.images is not None else [None] * count
        columns = [
            pa.array(ids, pa.binary(16)),
            pa.array([batch.image_ids[n] for n in keep], pa.string()),
            pa.array(paths, pa.string()),
            pa.repeat(pa.scalar(file.images, pa.string()), count),
            pa.array(texts, pa.string()),
            pa.array([batch.captions[n] for n in keep], pa.string()),
            self._tokenizer.encode_batch(texts),
            pa.array([splits[n] for n in keep], pa.string()),
            pa.array([default if licence is None or licence.lower() in _NO_LICENCE else licence for licence in own]),
            pa.repeat(pa.scalar(file.name, pa.string()), count),
            pa.array([batch.rows[n] for n in keep], pa.int64()),
        ]
        return pa.RecordBatch.from_arrays(
            [column.cast(of.type) for column, of in zip(columns, tables.CAPTIONS, strict=True)], schema=tables.CAPTIONS
        )


def _distinct(ids: list[str | None], paths: list[str | None]) -> list[tuple[str, str | None]]:
    """Ids and paths of a batch's different images."""
    return list(dict.fromkeys((image, path) for image, path in zip(ids, paths, strict=True) if image is not None))


def _places(images: list[tuple[str, str | None]], group: str) -> Keys:
    """Keys of images with archive and file name. Folders do not count: not all sources of one archive name them."""
    return text_keys([f"{image}\0{PurePosixPath(path or '').name}" for image, path in images], group)


def _seconds(images: list[str], places: Keys) -> npt.NDArray[np.bool_]:
    """bool [n], True for an image whose id came before with another place."""
    first: dict[str, int] = {}
    return np.array(
        [first.setdefault(image, place) != place for image, place in zip(images, places.tolist(), strict=True)],
        np.bool_,
    )


def _kept(values: list[T], mask: Iterable[bool]) -> list[T]:
    return list(compress(values, mask))
