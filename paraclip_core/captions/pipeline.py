"""Turns rows of source files into accepted captions and rejects, filtered and de-duplicated in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa

from paraclip_core import tables
from paraclip_core.captions.counts import Outcome
from paraclip_core.captions.filters import cleaned
from paraclip_core.captions.keys import Keys, KeySet, text_keys
from paraclip_core.captions.options import DataOptions
from paraclip_core.captions.rows import Problem, RowBatch, reject_batch
from paraclip_core.captions.sources import SourceFile, read_source
from paraclip_core.captions.splits import split_name

UNIQUE = "give one of the sources a data.sources[].image_prefix"
"""What fixes a clash of image ids."""
BY_CONTENT = "name the column of pictures in data.sources[].columns.image to have ids of their contents"
"""What fixes it for pictures inside Parquet."""
DUPLICATE = "duplicate", "the same caption of the same image came before"
_NO_LICENSE = frozenset({"?", "unknown", "none", "null"})


class CaptionPipeline:
    """Processes source files one after another and removes duplicates across all of them.

    Memory: the keys of the duplicate filter (8 bytes per accepted caption, and 8 or 16 per image with an archive), 8
    bytes per held-out image, and one batch.
    """

    def __init__(self, options: DataOptions, files: Sequence[SourceFile]) -> None:
        """Prepare for `files`; their image archives determine whether image ids can clash."""
        self._options = options
        self._captions, self._images, self._owned = KeySet(), KeySet(), KeySet()
        self._evaluated = {split: KeySet() for split in ("val", "test")}
        self._trains_images = any(file.images is not None for file in files)
        self._pictures = {file.name for file in files if file.pictures}
        # A single file may name its images freely; for pictures only the ids tell which are the same.
        self._clashes = bool(self._pictures) or sum(file.images is not None for file in files) > 1

    @property
    def images(self) -> int:
        """Number of distinct images of accepted captions whose archive is known."""
        return len(self._images)

    def run(self, file: SourceFile) -> Iterator[Outcome]:
        """Accepted and rejected rows of a file.

        With `on_error: skip` an unreadable file gives one reject without a row; the rows before the damage are kept.
        """
        for batch in read_source(file, self._options.on_error):
            yield self._outcome(batch, file)

    def restore(self, accepted: pa.RecordBatch) -> None:
        """Remember captions that an earlier try accepted (columns caption_id, image_id, image_path, images, split)."""
        splits = accepted.column("split").to_pylist()
        self._captions.add(_row_keys(accepted.column("caption_id").to_pylist(), splits))
        ids, paths, groups = (accepted.column(name).to_pylist() for name in ("image_id", "image_path", "images"))
        for group in sorted({group for group in groups if group is not None}):
            mine = [of == group for of in groups]
            self._own(list(compress(ids, mine)), list(compress(paths, mine)), group)
        self._note_splits(ids, splits)

    def _outcome(self, batch: RowBatch, file: SourceFile) -> Outcome:
        batch.drop_undecodable()
        if prefix := file.options.image_prefix:
            batch.image_ids = [None if image is None else prefix + image for image in batch.image_ids]
        texts = self._cleaned(batch, file.split, file.images)
        texts = self._without_conflicts(batch, texts, file)
        ids = [tables.text_hash(image, text) for image, text in zip(batch.image_ids, texts, strict=True)]
        new = self._captions.add(_row_keys(ids, batch.splits)).tolist()
        if not all(new):
            batch.drop([None if is_new else DUPLICATE for is_new in new])
            ids, texts = list(compress(ids, new)), list(compress(texts, new))
        self._own(batch.image_ids, batch.image_paths, file.images)
        self._note_splits(batch.image_ids, batch.splits)
        return Outcome(self._accepted(batch, file, ids, texts), reject_batch(batch.rejects, file.name))

    def _splits_of(self, batch: RowBatch) -> dict[str | None, str]:
        """Splits of images that an earlier row held out; a row of such an image that states no split follows it."""
        names = [image for image in dict.fromkeys(batch.image_ids) if image is not None]
        if None not in batch.splits or not any(map(len, self._evaluated.values())):
            return {}
        keys = text_keys(names)
        return {
            image: split for split, seen in self._evaluated.items() for image in compress(names, seen.contains(keys))
        }

    def _note_splits(self, ids: list[str | None], splits: Sequence[str | None]) -> None:
        for split, seen in self._evaluated.items():
            names = [image for image, of in zip(ids, splits, strict=True) if of == split and image is not None]
            seen.add(text_keys(list(dict.fromkeys(names))))

    def _cleaned(self, batch: RowBatch, default: str, images: str | None) -> list[str]:
        """Cleaned texts of the rows that pass the filters; the batch keeps these rows, with canonical split names."""
        texts: list[str] = []
        splits: list[str | None] = []
        problems: list[Problem | None] = []
        evaluated, share = self._splits_of(batch), self._options.held_out
        for n, (raw, named) in enumerate(zip(batch.captions, batch.splits, strict=True)):
            text, problem = cleaned(raw, self._options)
            image, split = batch.image_ids[n], default if named is None else split_name(named)
            if named is None and split == "train" and (share or evaluated):
                held_out = share > 0 and int(text_keys([image or text], "held out")[0]) < share * 2**64
                split = evaluated.get(image, "val" if held_out else split)
            unusable = self._trains_images and split == "train" and (image is None or images is None)
            if problem is None and unusable:
                problem = "no_image", "the row names no image, so it cannot be trained on"
            if problem is None and split is None:
                problem = "unknown_split", f"split {str(named)[:80]!r}, expected train, val or test"
            if problem is None:
                texts.append(text)
                splits.append(split)
            problems.append(problem)
        batch.drop(problems)
        batch.splits = splits
        return texts

    def _without_conflicts(self, batch: RowBatch, texts: list[str], file: SourceFile) -> list[str]:
        """The texts whose image ids do not already name other images; the batch keeps their rows."""
        if file.images is None or not self._clashes:
            return texts
        unique = _distinct(batch.image_ids, batch.image_paths)
        places = _places(unique, self._salt(file.images))
        named = self._images.contains(text_keys([image for image, _ in unique]))
        if file.images in self._pictures:
            first: dict[str, int] = {}
            # An id that occurred earlier in this batch with another place also names another image.
            pairs = zip(unique, places.tolist(), strict=True)
            named |= np.array([first.setdefault(image, place) != place for (image, _), place in pairs], np.bool_)
        clashing = set(compress(unique, named & ~self._owned.contains(places)))
        fix = BY_CONTENT if file.pictures else UNIQUE
        free = batch.drop(
            [
                ("image_conflict", f"image id {str(image)[:200]!r} already names another image; {fix}")
                if (image, path) in clashing
                else None
                for image, path in zip(batch.image_ids, batch.image_paths, strict=True)
            ]
        )
        return list(compress(texts, free))

    def _own(self, ids: list[str | None], paths: list[str | None], group: str | None) -> None:
        """Remember the images of accepted captions, and where they are if ids can clash."""
        if group is None or not (unique := _distinct(ids, paths)):
            return
        self._images.add(text_keys([image for image, _ in unique]))
        if self._clashes:
            self._owned.add(_places(unique, self._salt(group)))

    def _salt(self, group: str) -> str:
        """What distinguishes images of the same name in two archives. A picture's name identifies its contents."""
        return "" if group in self._pictures else group

    def _accepted(self, batch: RowBatch, file: SourceFile, ids: list[bytes], texts: list[str]) -> pa.RecordBatch:
        count, default = len(batch), file.options.license
        columns = [
            pa.array(ids, pa.binary(16)),
            pa.array(batch.image_ids, pa.string()),
            pa.array(batch.image_paths if file.images is not None else [None] * count, pa.string()),
            pa.repeat(pa.scalar(file.images, pa.string()), count),
            pa.array(texts, pa.string()),
            pa.array(batch.captions, pa.string()),
            pa.array(batch.splits, pa.string()),
            pa.array([default if name is None or name.lower() in _NO_LICENSE else name for name in batch.licenses]),
            pa.repeat(pa.scalar(file.name, pa.string()), count),
            pa.array(batch.rows, pa.int64()),
        ]
        return pa.RecordBatch.from_arrays(
            [column.cast(of.type) for column, of in zip(columns, tables.CAPTIONS, strict=True)], schema=tables.CAPTIONS
        )


def _distinct(ids: list[str | None], paths: list[str | None]) -> list[tuple[str, str | None]]:
    return list(dict.fromkeys((image, path) for image, path in zip(ids, paths, strict=True) if image is not None))


def _places(images: list[tuple[str, str | None]], group: str) -> Keys:
    """Keys of images with archive and file name. Folders are ignored, as not all sources of an archive name them."""
    return text_keys([f"{image}\0{PurePosixPath(path or '').name}" for image, path in images], group)


def _row_keys(ids: Sequence[bytes], splits: Sequence[str | None]) -> Keys:
    """The ids' keys, distinct for held-out rows: a held-out row that is also trained on is leakage, not a duplicate."""
    held_out = np.array([split != "train" for split in splits], np.bool_)
    # Two of ten million captions share the first eight bytes of their ids with probability 3e-6.
    keys = np.frombuffer(b"".join(ids), dtype="<u8")[::2].astype(np.uint64)
    return np.where(held_out, ~keys, keys)
