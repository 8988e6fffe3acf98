"""Overlap of training and validation: images with equal ids or contents, and equal captions.

A model retrieves a validation image that it was trained on from memory, so recall says nothing about unseen images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paraclip_core.captions.keys import KeySet, text_keys
from paraclip_core.clip.images import ImageArchive
from paraclip_core.errors import InputError
from paraclip_core.pictures import picture_digest, picture_place

SHARED_COLUMNS = ("image_id", "image_path", "images", "caption", "split")
MOST_IMAGES, MOST_CAPTIONS = 0.1, 0.5
"""Shares of the validation images and captions beyond which a run is refused. A few percent of web pictures and short
captions repeat; more points to a mistake in the splits."""
LOOKED_UP = 1000
"""Validation images whose contents are compared before any image is encoded; the report compares all."""
TRAINED = 200_000
"""Number of training images beyond which even this is skipped: reading their sizes alone would take minutes."""
MEND = (
    "give all rows of an image one split (data.sources[].columns.split), take the repeated images out of one of the "
    "sources, or leave the splits out and set data.held_out, which holds images out by their ids"
)

Place = tuple[str, str]
"""Archive and name inside it."""
Batches = Callable[[], Iterable[pa.RecordBatch]]
"""Yields batches with the columns :data:`SHARED_COLUMNS`; may be called several times."""
Contents = Callable[[dict[str, Place], int], tuple[int, int]]
"""Given validation images by id, none of which is a training id, and the number of training images: how many of them
have the contents of a training image, and how many were compared."""


@dataclass(frozen=True)
class Shared:
    """Validation rows, and those among them that training has as well."""

    images: int
    """Images of held-out splits."""
    by_id: int
    captions: int
    equal_captions: int
    compared: int = 0
    """Images whose contents were compared."""
    by_content: int = 0

    @property
    def notices(self) -> list[str]:
        """Notices for the user, a sentence each."""
        lines = []
        if self.by_id:
            lines.append(f"{self.by_id} of {self.images} validation images are trained on, too, by their ids")
        if self.by_content:
            lines.append(
                f"{self.by_content} of {self.compared} validation images have the contents of a training image"
            )
        if self.equal_captions:
            lines.append(f"{self.equal_captions} of {self.captions} validation captions are training captions, too")
        return lines

    @property
    def refused(self) -> bool:
        """Whether the overlap is so large that results say little about unseen images."""
        images = self.by_id / max(self.images, 1) + self.by_content / max(self.compared, 1)
        return images > MOST_IMAGES or self.equal_captions / max(self.captions, 1) > MOST_CAPTIONS

    def check(self) -> None:
        if self.refused:
            raise InputError(
                f"{'; '.join(self.notices)}. Above {MOST_IMAGES:.0%} of the images or {MOST_CAPTIONS:.0%} of the "
                f"captions a result would only measure memory: {MEND}"
            )


def find_shared(batches: Batches, contents: Contents | None = None) -> Shared:
    """Count what splits share. Memory: 8 bytes per caption and per image, plus the names of the validation images."""
    trained, texts = KeySet(), KeySet()
    held: dict[str, Place] = {}
    captions = [np.zeros(0, np.uint64)]
    for batch in batches():
        train, held_out = by_split(batch)
        texts.add(text_keys(train["caption"].to_pylist()))
        trained.add(text_keys(train["image_id"].drop_null().to_pylist()))
        captions.append(text_keys(held_out["caption"].to_pylist()))
        for image, *place in _rows(held_out):
            held.setdefault(image, (place[0], place[1]))
    by_id = trained.contains(text_keys(list(held)))
    unseen = {image: place for (image, place), trains in zip(held.items(), by_id, strict=True) if not trains}
    by_content, compared = contents(unseen, len(trained)) if contents is not None else (0, 0)
    every = np.concatenate(captions)
    return Shared(len(held), int(by_id.sum()), len(every), int(texts.contains(every).sum()), compared, by_content)


def shared_contents(batches: Batches, archive: Callable[[str], ImageArchive]) -> Contents:
    """Returns a function that compares the files of validation images with training images of the same size."""

    def compare(unseen: dict[str, Place], trained_on: int) -> tuple[int, int]:
        if not unseen or trained_on > TRAINED:
            return 0, 0
        names = list(unseen)
        chosen = [names[n] for n in np.argsort(text_keys(names))[:LOOKED_UP]]
        with ExitStack() as stack:
            files = _Files(archive, stack)
            held = [digest for place in map(unseen.__getitem__, chosen) if (digest := files.digest(place))]
            sizes = {size for size, _ in held}
            trained: set[str] = set()
            for batch in batches():
                for place in dict.fromkeys((row[1], row[2]) for row in _rows(by_split(batch)[0])):
                    if files.size(place) in sizes and (entry := files.digest(place)):
                        trained.add(entry[1])
        return sum(digest in trained for _, digest in held), len(held)

    return compare


class _Files:
    """Sizes and digests of image files; None for an unreadable one, which ingest and features report.

    A picture in Parquet has its digest in its name and needs no size.
    """

    def __init__(self, archive: Callable[[str], ImageArchive], stack: ExitStack) -> None:
        self._open, self._stack = archive, stack
        self._archives: dict[str, ImageArchive | None] = {}

    def size(self, place: Place) -> int | None:
        if picture_place(place[1]):
            return 0
        archive = self._archive(place[0])
        return None if archive is None else archive.size(place[1])

    def digest(self, place: Place) -> tuple[int, str] | None:
        if picture_place(place[1]):
            digest = place[1].rpartition("/")[2]
            return (0, digest) if "/" in place[1] else None
        archive = self._archive(place[0])
        with suppress(InputError):
            data = b"" if archive is None else archive.read(place[1])
            return (len(data), picture_digest(data)) if data else None
        return None

    def _archive(self, name: str) -> ImageArchive | None:
        if name not in self._archives:
            self._archives[name] = None
            with suppress(InputError):
                self._archives[name] = self._stack.enter_context(self._open(name))
        return self._archives[name]


def by_split(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    trains = pc.call_function("equal", [batch["split"], pa.scalar("train")])
    return batch.filter(trains), batch.filter(pc.call_function("invert", [trains]))


def _rows(batch: pa.RecordBatch) -> Iterator[tuple[str, str, str]]:
    columns = (batch[name].to_pylist() for name in ("image_id", "images", "image_path"))
    for image, images, path in zip(*columns, strict=True):
        if image is not None and images is not None and path is not None:
            yield image, images, path
