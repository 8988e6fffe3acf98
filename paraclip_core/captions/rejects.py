"""Rows that are left out, on their way into the table of rejects."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa

from paraclip_core import tables
from paraclip_core.captions.readers.rows import Reject, RowBatch

__all__ = ["decodable", "drop_undecodable", "reject_batch", "reject_row"]

SHOWN_CHARS = 2000
_SURROGATE = re.compile("[\ud800-\udfff]")


def reject_row(batch: RowBatch, n: int, reason: str, detail: str) -> Reject:
    """Row number `n` of a batch as a reject."""
    return Reject(batch.rows[n], reason, detail, batch.captions[n])


def reject_batch(rejects: list[Reject], source: str) -> pa.RecordBatch:
    """The table of rejects (schema `tables.REJECTS`) of one file, sorted by row."""
    rejects.sort(key=lambda reject: -1 if reject.row is None else reject.row)
    columns = [
        pa.repeat(pa.scalar(source, pa.string()), len(rejects)),
        pa.array([reject.row for reject in rejects], pa.int64()),
        pa.array([reject.reason for reject in rejects], pa.string()),
        pa.array([_printable(reject.detail) for reject in rejects], pa.string()),
        pa.array([_printable(reject.caption) for reject in rejects], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=tables.REJECTS)


def _printable(text: str | None) -> str | None:
    """At most 2,000 characters, with U+FFFD for what is not UTF-8."""
    return None if text is None else _SURROGATE.sub("\ufffd", text[:SHOWN_CHARS])


def drop_undecodable(batch: RowBatch, rejects: list[Reject]) -> None:
    """Move the rows with bytes that are not UTF-8 to the rejects."""
    fields = (batch.captions, batch.image_ids, batch.image_paths, batch.splits, batch.licences)
    names = ("caption", "image", "image path", "split", "licence")
    if all(decodable(values) for values in fields):
        return
    good: list[int] = []
    for n, row in enumerate(zip(*fields, strict=True)):
        bad = next((name for name, value in zip(names, row, strict=True) if not decodable([value])), None)
        if bad is None:
            good.append(n)
        else:
            rejects.append(reject_row(batch, n, "not_utf8", f"the {bad} is not UTF-8"))
    for name in ("captions", "image_ids", "image_paths", "splits", "licences", "rows"):
        values = getattr(batch, name)
        setattr(batch, name, [values[n] for n in good])


def decodable(values: Sequence[str | None]) -> bool:
    """Whether all bytes of the texts were UTF-8; others were read as lone surrogates."""
    try:
        "".join(value for value in values if value is not None).encode()
    except UnicodeEncodeError:
        return False
    return True
