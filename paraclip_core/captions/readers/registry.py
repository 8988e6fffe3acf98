"""Which reader reads a file: by the option, otherwise by its name and first bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from paraclip_core.captions.readers.coco import read_coco
from paraclip_core.captions.readers.delimited import read_csv, read_tsv
from paraclip_core.captions.readers.jsonl import read_jsonl
from paraclip_core.captions.readers.karpathy import read_karpathy
from paraclip_core.captions.readers.lines import open_bytes, without_mark
from paraclip_core.captions.readers.parquet import read_parquet
from paraclip_core.captions.readers.text import read_text
from paraclip_core.captions.readers.webdataset import read_webdataset
from paraclip_core.captions.rows import RowBatch
from paraclip_core.config import SourceOptions
from paraclip_core.errors import InputError

__all__ = ["READERS", "detect", "named_format", "need_file", "read"]

Reader = Callable[[Path, SourceOptions], Iterator[RowBatch]]

READERS: Mapping[str, Reader] = {
    "parquet": read_parquet,
    "webdataset": read_webdataset,
    "coco": read_coco,
    "karpathy": read_karpathy,
    "csv": read_csv,
    "tsv": read_tsv,
    "jsonl": read_jsonl,
    "text": read_text,
}
"""Reader of each format of `data.sources[].format`."""

SUFFIXES = {
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".tgz": "webdataset",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".txt": "text",
}
HEAD = 1 << 20
NO_IMAGES = re.compile(rb'"images"\s*:\s*\[\s*\]')


def named_format(path: Path) -> str | None:
    """The format that a file's name speaks of (``json`` for any kind of JSON), None where it speaks of none."""
    name = path.name.lower().removesuffix(".gz")
    return SUFFIXES.get(Path(name).suffix)


def detect(path: Path) -> str:
    """The format of a file, by its name and, where that does not settle it, its first bytes.

    Raises:
        InputError: it cannot be read or told; the text says how to name the format.
    """
    named = named_format(path)
    if named is not None and named != "json":
        return named
    with open_bytes(path) as file:
        head = file.read(HEAD)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head[257:262] == b"ustar":
        return "webdataset"
    start = without_mark(head, path).lstrip()
    if not start:
        raise InputError(f"{path} is empty; expected captions")
    if start.startswith(b"["):
        return "jsonl"
    if start.startswith(b"{"):
        return _json_format(start, path)
    raise InputError(f"cannot tell the format of {path}; set data.sources[].format to one of {', '.join(READERS)}")


def _json_format(head: bytes, path: Path) -> str:
    if b'"sentences"' in head or b'"sentids"' in head:
        return "karpathy"
    if any(mark in head for mark in (b'"annotations"', b'"file_name"', b'"coco_url"')):
        return "coco"
    first, _, rest = head.partition(b"\n")
    several = rest.lstrip().startswith(b"{")
    if NO_IMAGES.search(head) and not several:
        return "karpathy"
    if several or first.rstrip().endswith(b"}"):
        return "jsonl"
    raise InputError(
        f"{path} is JSON, but neither Karpathy's (images with sentences) nor COCO's (annotations) nor one object a "
        "line; set data.sources[].format to karpathy, coco or jsonl"
    )


def read(path: Path, options: SourceOptions, form: str) -> Iterator[RowBatch]:
    """Rows of a file in format `form`, batch by batch.

    Raises:
        InputError: the file is missing or bad as a whole.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder without any caption file; expected {', '.join(SUFFIXES)}")
    need_file(path)
    return READERS[form](path, options)


def need_file(path: Path) -> None:
    """See to it that `path` can be read again and again, for its contents' hash among others.

    Raises:
        InputError: there is nothing, or a pipe or a device.
    """
    if not path.exists():
        raise InputError(f"{path.absolute()} does not exist; data.sources[].path is relative to data.root")
    if not path.is_file():
        raise InputError(f"{path} is a pipe or a device and cannot be read twice; write it to a file first")
