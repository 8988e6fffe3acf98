"""The files behind the configured sources, and which reader reads each: by the option, or by its name and first bytes.

A format is one row of :data:`READERS`; a reader of the user's own is named as `package.module:function`. The order of
the files depends on their names alone.

A file that cannot be read or recognized raises InputError, a wrong option ConfigError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from paraclip_core.captions.readers.json import (
    is_coco,
    is_jsonl,
    is_karpathy,
    read_coco,
    read_jsonl,
    read_karpathy,
)
from paraclip_core.captions.readers.parquet import read_parquet
from paraclip_core.captions.readers.text import open_bytes, read_csv, read_text, read_tsv, without_mark
from paraclip_core.captions.readers.webdataset import read_webdataset
from paraclip_core.captions.rows import RowBatch, configured_split, split_name
from paraclip_core.config import SourceOptions
from paraclip_core.errors import ConfigError, InputError
from paraclip_core.options import import_path, module_source
from paraclip_core.paths import below, user_path
from paraclip_core.pictures import holds_pictures

SHARD = re.compile(r"([a-z]+)-\d{5}-of-\d{5}\b.*")
"""Names such as ``validation-00000-of-00002.parquet``, as Hugging Face's hub has them."""
NOT_CAPTIONS = ("readme", "license", "licence", "copying", "notice", "citation")

Read = Callable[[Path, SourceOptions], Iterator[RowBatch]]
"""Yields a file's rows; a bad row becomes one of the batch's rejects, a file that is bad as a whole an `InputError`."""


@dataclass(frozen=True)
class Reader:
    """The reader of a format, and how its files are recognized."""

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
    """The format of a file, by its name and, where that does not settle it, its first bytes."""
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
    raise InputError(f"cannot tell the format of {path}; set data.sources[].format to karpathy, coco or jsonl")


def read(path: Path, options: SourceOptions, form: str) -> Iterator[RowBatch]:
    """Rows of a file in format `form`, batch by batch."""
    need_file(path)
    reader = READERS.get(form)
    return _own_reader(form)(path, options) if reader is None else reader.read(path, options)


def need_file(path: Path) -> None:
    """See to it that `path` can be read again and again, for its contents' hash among others."""
    if not path.exists():
        raise InputError(f"{path.absolute()} does not exist; data.sources[].path is relative to data.root")
    if not path.is_file():
        raise InputError(
            f"{path} is no file; expected captions in a file, or a folder that holds {', '.join(SUFFIXES)}"
        )


def own_reader_source(form: str) -> bytes:
    """The source of the module with a reader of the user's own, which says what it makes of a file."""
    return module_source(_own_reader(form))


def _own_reader(form: str) -> Read:
    expected = "package.module:function, called as function(path, options)"
    return import_path(form, f"data.sources[].format={form}", expected, Path(), SourceOptions(path="."))


@dataclass(frozen=True)
class SourceFile:
    """One file with captions. It may be missing; reading it says so."""

    path: Path
    name: str
    """As tables name it: relative to `data.root`."""
    form: str
    """Its format, ``unknown`` where that cannot be told."""
    options: SourceOptions

    @property
    def images(self) -> str | None:
        """Archive of its images, relative to `data.root`: as configured; a webdataset tar holds them itself, and so
        does Parquet with pictures in a column."""
        return self.options.images or (self.name if self.form == "webdataset" or self.pictures else None)

    @cached_property
    def pictures(self) -> bool:
        """Whether it is Parquet that holds its images itself."""
        inside = self.form == "parquet" and self.options.images is None
        return inside and holds_pictures(self.path, self.options.columns.image)

    @property
    def split(self) -> str:
        """Split of rows that do not say their own: as configured; the name of Parquet with pictures may tell."""
        named = shard_split(self.path) if self.options.split is None and self.pictures else None
        return named or configured_split(self.options.split)


def shard_split(path: Path) -> str | None:
    """The split that a shard's name tells, None where it tells none."""
    shard = SHARD.fullmatch(path.name)
    return None if shard is None else split_name(shard[1])


def expand(root: Path, sources: Sequence[SourceOptions], own: Path | None = None) -> list[SourceFile]:
    """Every caption file of the sources: in the order of the sources, those of a folder sorted by name.

    A folder is searched with its subfolders. With format `auto` it gives the files whose names end in a known format;
    plain text only where there is nothing else; never hidden files, READMEs, img2dataset's ``_stats.json``, the
    source's own `images` (unless these are the whole folder), `own`, where artifacts are kept, nor the Parquet file
    that lies beside a webdataset tar of the same name (it repeats it). A reader of the user's own gets every file that
    is not hidden, among the `images` or among the artifacts.
    A missing path and a folder without captions stand for themselves, so that whoever reads them gets the error.
    """
    if not sources:
        raise ConfigError("data.sources is empty; name at least one file or folder with captions")
    return [file for source in sources for file in _files(root, source, own)]


def _files(root: Path, source: SourceOptions, own: Path | None) -> Iterator[SourceFile]:
    path = root / user_path(source.path)
    if not path.is_dir():
        yield _source_file(path, PurePosixPath(source.path), source)
        return
    files = _shown(root, source, own)
    if source.format == "auto":
        texts = [p for p in files if named_format(p) == "text" and not p.name.lower().startswith(NOT_CAPTIONS)]
        files = _structured(files) or texts
    elif ":" not in source.format:
        expected = "json" if source.format in ("coco", "karpathy") else source.format
        files = [file for file in files if named_format(file) == expected]
    for inner in files or [path]:
        yield _source_file(inner, PurePosixPath(source.path) / inner.relative_to(path).as_posix(), source)


def _source_file(path: Path, name: PurePosixPath, source: SourceOptions) -> SourceFile:
    form: str = source.format
    if form == "auto":
        try:
            form = detect(path) if path.is_file() else "unknown"
        except InputError:
            form = "unknown"
    return SourceFile(path, str(name), form, source)


def _shown(root: Path, source: SourceOptions, own: Path | None) -> list[Path]:
    path, images = root / user_path(source.path), root / user_path(source.images) if source.images else None
    # A folder that holds captions and images alike would be skipped with all that is in it.
    skipped = images if images is not None and path in images.parents else None
    # What a run writes would be read by the next one.
    left_out = {place for place in (skipped, below(path, own)) if place is not None}
    files = sorted(p for p in path.rglob("*") if p.is_file() and left_out.isdisjoint((p, *p.parents)))
    return [p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts)]


def _structured(files: list[Path]) -> list[Path]:
    named = [(path, named_format(path)) for path in files]
    tars = {path.with_suffix("") for path, form in named if form == "webdataset"}
    return [
        path
        for path, form in named
        if form not in (None, "text")
        and not path.name.endswith("_stats.json")
        and not (form == "parquet" and path.with_suffix("") in tars)
    ]
