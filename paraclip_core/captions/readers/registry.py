"""Which reader reads a file: by the option, otherwise by its name and first bytes.

A format is one row of :data:`READERS`; a reader of the user's own is named as `package.module:function`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from paraclip_core.captions.readers.coco import is_coco, is_karpathy, read_coco, read_karpathy
from paraclip_core.captions.readers.json import is_jsonl, read_jsonl
from paraclip_core.captions.readers.parquet import read_parquet
from paraclip_core.captions.readers.tabular import read_csv, read_tsv
from paraclip_core.captions.readers.text import open_bytes, read_text, without_mark
from paraclip_core.captions.readers.webdataset import read_webdataset
from paraclip_core.captions.rows import RowBatch
from paraclip_core.config import SourceOptions
from paraclip_core.errors import InputError
from paraclip_core.plugins import import_path, module_source

__all__ = ["READERS", "Reader", "detect", "named_format", "need_file", "own_reader_source", "read"]


Read = Callable[[Path, SourceOptions], Iterator[RowBatch]]
"""Yields a file's rows; a bad row becomes one of the batch's rejects, a file that is bad as a whole an `InputError`."""


@dataclass(frozen=True)
class Reader:
    """The reader of a format, and how its files are recognised."""

    read: Read
    suffixes: tuple[str, ...] = ()
    """How names of such files end, but for ``.gz``."""
    magic: tuple[int, bytes] | None = None
    """A place in the file, and the bytes that every such file has there."""
    is_json: Callable[[bytes], bool] | None = None
    """Whether JSON that begins so is of this format; the formats are asked in the order of :data:`READERS`."""


READERS: Mapping[str, Reader] = {
    "parquet": Reader(read_parquet, (".parquet",), magic=(0, b"PAR1")),
    "webdataset": Reader(read_webdataset, (".tar", ".tgz"), magic=(257, b"ustar")),
    "coco": Reader(read_coco, is_json=is_coco),
    "karpathy": Reader(read_karpathy, is_json=is_karpathy),
    "csv": Reader(read_csv, (".csv",)),
    "tsv": Reader(read_tsv, (".tsv",)),
    "jsonl": Reader(read_jsonl, (".jsonl", ".ndjson", ".json"), is_json=is_jsonl),
    "text": Reader(read_text, (".txt",)),
}
"""Reader of each format of `data.sources[].format`."""

SUFFIXES = {suffix: name for name, reader in READERS.items() for suffix in reader.suffixes} | {".json": "json"}
HEAD = 1 << 20


def named_format(path: Path) -> str | None:
    """The format that a file's name speaks of (``json`` for any kind of JSON), None where it speaks of none."""
    name = path.name.lower().removesuffix(".gz")
    return SUFFIXES.get(Path(name).suffix)


def detect(path: Path) -> str:
    """The format of a file, by its name and, where that does not settle it, its first bytes.

    Raises:
        InputError: it cannot be read or recognised; the text says how to name the format.
    """
    named = named_format(path)
    if named is not None and named != "json":
        return named
    with open_bytes(path) as file:
        head = file.read(HEAD)
    for name, reader in READERS.items():
        if reader.magic is not None and head.startswith(reader.magic[1], reader.magic[0]):
            return name
    start = without_mark(head, path).lstrip()
    if not start:
        raise InputError(f"{path} is empty; expected captions")
    if not start.startswith((b"[", b"{")):
        raise InputError(f"cannot tell the format of {path}; set data.sources[].format to one of {', '.join(READERS)}")
    for name, reader in READERS.items():
        if reader.is_json is not None and reader.is_json(start):
            return name
    raise InputError(
        f"{path} is JSON, but neither Karpathy's (images with sentences) nor COCO's (annotations) nor one object a "
        "line; set data.sources[].format to karpathy, coco or jsonl"
    )


def read(path: Path, options: SourceOptions, form: str) -> Iterator[RowBatch]:
    """Rows of a file in format `form`, batch by batch.

    Raises:
        ConfigError: the format is a reader of the user's own that cannot be used.
        InputError: the file is missing or bad as a whole.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder without any caption file; expected {', '.join(SUFFIXES)}")
    need_file(path)
    reader = READERS.get(form)
    return _own_reader(form)(path, options) if reader is None else reader.read(path, options)


def need_file(path: Path) -> None:
    """See to it that `path` can be read again and again, for its contents' hash among others.

    Raises:
        InputError: there is nothing, or a pipe or a device.
    """
    if not path.exists():
        raise InputError(f"{path.absolute()} does not exist; data.sources[].path is relative to data.root")
    if not path.is_file():
        raise InputError(f"{path} is a pipe or a device and cannot be read twice; write it to a file first")


def own_reader_source(form: str) -> bytes:
    """The source of the module with a reader of the user's own, which says what it makes of a file.

    Raises:
        ConfigError: it cannot be used.
    """
    return module_source(_own_reader(form))


def _own_reader(form: str) -> Read:
    expected = "package.module:function, called as function(path, options)"
    return import_path(form, f"data.sources[].format={form}", expected, Path(), SourceOptions(path="."))
