"""Raw rows of a source file, in batches of bounded size, with the rejected ones.

Every rejected row gets one of these reason codes and a detail:

=================  ====================================================================================
``not_utf8``       a field holds bytes that are not UTF-8 (or a lone surrogate from a JSON escape)
``wrong_type``     a field is a number, a list … where text was expected
``missing_field``  the row has no caption, or does not fit the file's columns
``bad_json``       the line is not JSON
``bad_member``     a tar member is too large or not what its name says
``too_long``       more than 2,000 characters; no other check is made
``empty``          nothing is left after cleaning
``too_few_words``  fewer than `min_words` words, see `filters.count_words`
``too_many_words`` more than `max_words` of them
``unknown_split``  the row's split is not train, val, test or one of their usual aliases
``no_image``       a training row names no image, while others do: it could be paraphrased but not trained on
``image_conflict`` the image id already names another image, in this archive or another
``duplicate``      the same caption of the same image came before
``personal``       a query holds an e-mail address, a telephone number or a long number (query logs only)
``identifier``     a query is a URL, a file name or an identifier (query logs only)
``rare_token``     a query of one word that nobody else asked and the tokenizer does not know (query logs only)
``bad_count``      the count is not a whole number above 0 (query logs only)
``unreadable``     the whole file is bad (`source_row` is null); only with `on_error: skip`
=================  ====================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress

import pyarrow as pa

from paraclip_core import tables
from paraclip_core.text_safety import encodable

BATCH_ROWS = 8192
BATCH_CHARS = 16 << 20
SHOWN_CHARS = 2000
TEXTS = {
    "captions": "caption", "image_ids": "image", "image_paths": "image path", "splits": "split", "licenses": "license",
    "counts": "count",
}  # fmt: skip
"""Text columns of a batch → the name of one value in messages."""
Problem = tuple[str, str]
"""Why a row is rejected: a reason code and a detail."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A rejected row and the reason."""

    row: int | None
    """Its number in the file; None for the whole file."""
    reason: str
    """A short code, see :mod:`paraclip_core.captions.rows`."""
    detail: str
    """What was found and what was expected."""
    caption: str | None = None
    """The raw caption, if there is one; lone surrogates stand for bytes that are not UTF-8."""


@dataclass(slots=True)
class RowBatch:
    """Raw rows of a file, column by column; the lists are equally long."""

    captions: list[str] = field(default_factory=list)
    image_ids: list[str | None] = field(default_factory=list)
    image_paths: list[str | None] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    licenses: list[str | None] = field(default_factory=list)
    counts: list[str | None] = field(default_factory=list)
    """How often each was asked, as the file says it; only a query log uses it."""
    rows: list[int] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.captions)

    def drop(self, problems: Sequence[Problem | None]) -> list[bool]:
        """Move the rows that have a problem to the rejects; returns which rows are kept."""
        stay = [problem is None for problem in problems]
        if not all(stay):
            for row, caption, problem in zip(self.rows, self.captions, problems, strict=True):
                if problem is not None:
                    self.rejects.append(Reject(row, *problem, caption))
            for name in (*TEXTS, "rows"):
                setattr(self, name, list(compress(getattr(self, name), stay)))
        return stay

    def drop_undecodable(self) -> None:
        columns = [getattr(self, name) for name in TEXTS]
        if all(map(decodable, columns)):
            return
        problems: list[Problem | None] = []
        for row in zip(*columns, strict=True):
            bad = next((what for what, value in zip(TEXTS.values(), row, strict=True) if not decodable([value])), None)
            problems.append(None if bad is None else ("not_utf8", f"the {bad} is not UTF-8"))
        self.drop(problems)


class Batcher:
    """Collects single rows into batches of bounded size and turns rows with wrong types into rejects."""

    def __init__(self) -> None:
        self.batch = RowBatch()
        self._chars = 0

    def add(
        self,
        row: int,
        caption: object,
        image: object,
        path: object = None,
        split: object = None,
        license: object = None,
        count: object = None,
    ) -> None:
        """Add one row; a list of captions becomes a row for each."""
        if isinstance(caption, list | tuple):
            if not caption:
                self.reject(row, "missing_field", "an empty list of captions, expected at least one")
            for item in caption:
                self.add(row, item, image, path, split, license, count)
            return
        if caption is None:
            self.reject(row, "missing_field", "no caption, expected text")
            return
        if not isinstance(caption, str):
            self.reject(row, "wrong_type", f"a caption of type {type(caption).__name__}, expected text")
            return
        try:
            image_id, image_path = as_key(image, "image"), as_key(path, "image path")
            of_split, of_license = as_key(split, "split"), as_key(license, "license")
            of_count = as_key(count, "count")
        except TypeError as error:
            self.reject(row, "wrong_type", str(error), caption)
            return
        batch = self.batch
        batch.captions.append(caption)
        batch.image_ids.append(image_id)
        batch.image_paths.append(image_path)
        batch.splits.append(of_split)
        batch.licenses.append(of_license)
        batch.counts.append(of_count)
        batch.rows.append(row)
        self._chars += len(caption)

    def reject(self, row: int | None, reason: str, detail: str, caption: str | None = None) -> None:
        self.batch.rejects.append(Reject(row, reason, detail, caption))
        self._chars += len(caption or "")

    def full(self) -> Iterator[RowBatch]:
        """Yield the batch if it is full."""
        if len(self.batch.captions) + len(self.batch.rejects) >= BATCH_ROWS or self._chars >= BATCH_CHARS:
            yield from self.rest()

    def rest(self) -> Iterator[RowBatch]:
        batch, self.batch, self._chars = self.batch, RowBatch(), 0
        if batch.captions or batch.rejects:
            yield batch


def as_key(value: object, what: str) -> str | None:
    """A short field as text: None if missing or blank; raises TypeError unless it is text or a whole number."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise TypeError(f"{what} is of type {type(value).__name__}, expected text or a whole number")


def decodable(values: Iterable[str | None]) -> bool:
    """Whether all bytes of the texts were UTF-8; others were read as lone surrogates."""
    try:
        "".join(value for value in values if value is not None).encode()
    except UnicodeEncodeError:
        return False
    return True


def reject_batch(rejects: list[Reject], source: str) -> pa.RecordBatch:
    """The table of rejects (schema `tables.REJECTS`) of one file, sorted by row."""
    rejects.sort(key=lambda reject: -1 if reject.row is None else reject.row)
    columns = [
        pa.repeat(pa.scalar(source, pa.string()), len(rejects)),
        pa.array([reject.row for reject in rejects], pa.int64()),
        pa.array([reject.reason for reject in rejects], pa.string()),
        pa.array([encodable(reject.detail[:SHOWN_CHARS]) for reject in rejects], pa.string()),
        pa.array([reject.caption and encodable(reject.caption[:SHOWN_CHARS]) for reject in rejects], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=tables.REJECTS)
