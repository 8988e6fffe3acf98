"""Readers of caption sources: one module and one row of :data:`READERS` per format.

A reader is a function of a path and the source's options that yields batches of rows. A bad row becomes a reject; an
unreadable file raises ``InputError``. Row numbers help to find the row: lines count from 1 as in an editor, records of
Parquet, JSON and tar from 0.
"""

from __future__ import annotations

from dataclasses import dataclass

_IN = "paraclip_core.captions.readers"


@dataclass(frozen=True)
class Reader:
    """A format's reader, and how its files are recognized."""

    read: str
    """The function, as `package.module:function`, imported when it is used."""
    suffixes: tuple[str, ...] = ()
    """Suffixes of such files, without ``.gz``."""
    magic: tuple[int, bytes] | None = None
    """An offset in the file, and the bytes that every such file has there."""
    is_json: str = ""
    """Dotted path of the function that recognizes this format from the start of a JSON file; formats are tried in the
    order of :data:`READERS`."""


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
"""Reader of each `data.sources[].format`. To add one, add a row here."""

FORMATS = ("auto", *READERS)
