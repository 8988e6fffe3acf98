"""The readers of caption sources: a file and a row of :data:`READERS` for each format.

A reader is a function of a path and the source's options that yields batches of rows. A bad row becomes a reject; a
file that is bad as a whole raises ``InputError``. Row numbers are those that help to find the row: lines count from 1
as in an editor, records of Parquet, JSON and tar from 0.
"""

from __future__ import annotations

from dataclasses import dataclass

_IN = "paraclip_core.captions.readers"


@dataclass(frozen=True)
class Reader:
    """The reader of a format, and how its files are recognized."""

    read: str
    """The function, as `package.module:function`, imported when it is used."""
    suffixes: tuple[str, ...] = ()
    """How names of such files end, but for ``.gz``."""
    magic: tuple[int, bytes] | None = None
    """A place in the file, and the bytes that every such file has there."""
    is_json: str = ""
    """Names the function that says whether JSON that begins so is of this format; the formats are asked in the order of
    :data:`READERS`."""


READERS = {
    "parquet": Reader(f"{_IN}.parquet:read_parquet", (".parquet",), magic=(0, b"PAR1")),
    "webdataset": Reader(f"{_IN}.webdataset:read_webdataset", (".tar", ".tgz"), magic=(257, b"ustar")),
    "coco": Reader(f"{_IN}.coco:read_coco", is_json=f"{_IN}.coco:is_coco"),
    "karpathy": Reader(f"{_IN}.karpathy:read_karpathy", is_json=f"{_IN}.karpathy:is_karpathy"),
    "csv": Reader(f"{_IN}.csv:read_csv", (".csv",)),
    "tsv": Reader(f"{_IN}.csv:read_tsv", (".tsv",)),
    "jsonl": Reader(f"{_IN}.json:read_jsonl", (".jsonl", ".ndjson", ".json"), is_json=f"{_IN}.json:is_jsonl"),
    "text": Reader(f"{_IN}.text:read_text", (".txt",)),
}
"""Reader of each format of `data.sources[].format`. Another one is a line here, or its dotted path in the settings."""

FORMATS = ("auto", *READERS)
