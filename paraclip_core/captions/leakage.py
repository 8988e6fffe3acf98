"""What training and validation share: images by their ids and contents, and equal captions.

A validation image that was trained on is found by memory, and recall says nothing about unseen images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paraclip_core.captions.pipeline import KeySet, text_keys
from paraclip_core.errors import InputError

SHARED_COLUMNS = ("image_id", "images", "caption", "split")
MOST_IMAGES, MOST_CAPTIONS = 0.1, 0.5
"""Shares of the validation images and captions beyond which a run is refused. Web pictures and short captions repeat,
by a few percent; more is a mistake in the splits."""
MEND = (
    "give all rows of an image one split (data.sources[].columns.split), take the repeated images out of one of the "
    "sources, or leave the splits out and set data.held_out, which holds images out by their ids"
)

Batches = Callable[[], Iterable[pa.RecordBatch]]
"""Opens batches with the columns :data:`SHARED_COLUMNS`."""
Contents = Callable[[list[str]], tuple[int, int]]
"""Of validation images whose ids no training image has: how many have the contents of one, of how many."""


@dataclass(frozen=True)
class Shared:
    """Validation's rows, and those of them that training has, too."""

    images: int
    """Images of splits that are not trained on."""
    by_id: int
    captions: int
    equal_captions: int
    compared: int = 0
    """Images whose contents were compared."""
    by_content: int = 0

    @property
    def notices(self) -> list[str]:
        """What a user should hear, a sentence each."""
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
        """Whether results would say little about images that were not trained on."""
        images, captions = self.by_id / max(self.images, 1), self.equal_captions / max(self.captions, 1)
        return images > MOST_IMAGES or captions > MOST_CAPTIONS

    def check(self) -> None:
        """Refuse splits that share too much."""
        if self.refused:
            raise InputError(
                f"{'; '.join(self.notices)}. Above {MOST_IMAGES:.0%} of the images or {MOST_CAPTIONS:.0%} of the "
                f"captions a result would be memory: {MEND}"
            )


def find_shared(batches: Batches, contents: Contents | None = None) -> Shared:
    """Count what splits share. Memory: 8 bytes a caption and an image, and the validation images' names."""
    trained, texts = KeySet(), KeySet()
    held: dict[str, None] = {}
    captions = [np.zeros(0, np.uint64)]
    for batch in batches():
        train, other = by_split(batch)
        texts.add(text_keys(train["caption"].to_pylist()))
        trained.add(text_keys(train["image_id"].drop_null().to_pylist()))
        captions.append(text_keys(other["caption"].to_pylist()))
        held |= dict.fromkeys(other.filter(other["images"].is_valid())["image_id"].drop_null().to_pylist())
    by_id = trained.contains(text_keys(list(held)))
    unseen = [image for image, trains in zip(held, by_id, strict=True) if not trains]
    by_content, compared = contents(unseen) if contents is not None else (0, 0)
    every = np.concatenate(captions)
    return Shared(len(held), int(by_id.sum()), len(every), int(texts.contains(every).sum()), compared, by_content)


def by_split(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Rows that are trained on, and the others."""
    trains = pc.call_function("equal", [batch["split"], pa.scalar("train")])
    return batch.filter(trains), batch.filter(pc.call_function("invert", [trains]))
