"""What readers yield: batches of caption rows as they stand in the file, with the rows that cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["BATCH_CHARS", "BATCH_ROWS", "LONGEST_RECORD", "Batcher", "Reject", "RowBatch"]

BATCH_ROWS = 8192
BATCH_CHARS = 16 << 20
LONGEST_RECORD = 16 << 20
"""Bytes of a line or tar member beyond which it is rejected unread, so that no file can fill the memory."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that is left out, and why."""

    row: int | None
    """Its number in the file, None where the whole file is meant."""
    reason: str
    """A short code, see :mod:`paraclip_core.captions.clean`."""
    detail: str
    """What was found and what was expected."""
    caption: str | None = None
    """The raw caption, where there is one; lone surrogates stand for bytes that are not UTF-8."""


@dataclass(slots=True)
class RowBatch:
    """Rows of a file, column by column; the lists are equally long. Captions are raw."""

    captions: list[str] = field(default_factory=list)
    image_ids: list[str | None] = field(default_factory=list)
    image_paths: list[str | None] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    licences: list[str | None] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)

    def __len__(self) -> int:
        """Rows that are not rejected."""
        return len(self.captions)


class Batcher:
    """Collects single rows into batches of bounded size and turns rows with wrong types into rejects."""

    def __init__(self) -> None:
        """Start with an empty batch."""
        self.batch = RowBatch()
        self._chars = 0

    def add(
        self,
        row: int,
        caption: object,
        image: object,
        path: object = None,
        split: object = None,
        licence: object = None,
    ) -> None:
        """Add one row; a list of captions becomes a row for each."""
        if isinstance(caption, list | tuple):
            if not caption:
                self.reject(row, "missing_field", "an empty list of captions, expected at least one")
            for item in caption:
                self.add(row, item, image, path, split, licence)
            return
        if not isinstance(caption, str):
            found = "no caption" if caption is None else f"a caption of type {type(caption).__name__}"
            self.reject(row, "missing_field" if caption is None else "wrong_type", f"{found}, expected text")
            return
        try:
            image_id = as_key(image, "image")
            image_path = as_key(path, "image path")
            of_split, of_licence = as_key(split, "split"), as_key(licence, "licence")
        except TypeError as error:
            self.reject(row, "wrong_type", str(error), caption)
            return
        batch = self.batch
        batch.captions.append(caption)
        batch.image_ids.append(image_id)
        batch.image_paths.append(image_path)
        batch.splits.append(of_split)
        batch.licences.append(of_licence)
        batch.rows.append(row)
        self._chars += len(caption)

    def reject(self, row: int | None, reason: str, detail: str, caption: str | None = None) -> None:
        """Leave a row out."""
        self.batch.rejects.append(Reject(row, reason, detail, caption))
        self._chars += len(caption or "")

    def full(self) -> Iterator[RowBatch]:
        """The batch, if it is large enough to be handed on."""
        if len(self.batch.captions) + len(self.batch.rejects) >= BATCH_ROWS or self._chars >= BATCH_CHARS:
            yield from self.rest()

    def rest(self) -> Iterator[RowBatch]:
        """The batch, if there is anything in it."""
        batch, self.batch, self._chars = self.batch, RowBatch(), 0
        if batch.captions or batch.rejects:
            yield batch


def as_key(value: object, what: str) -> str | None:
    """A short text field: text and whole numbers as text, nothing and blanks as None.

    Raises:
        TypeError: it is something else; the text says what.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise TypeError(f"{what} is of type {type(value).__name__}, expected text or a whole number")
