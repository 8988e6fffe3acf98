"""The files of the configured sources. Their order depends only on their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

from paraclip_core.captions.formats import detect, named_format, read
from paraclip_core.captions.options import SourceOptions
from paraclip_core.captions.readers import READERS
from paraclip_core.captions.rows import Reject, RowBatch
from paraclip_core.captions.splits import configured_split, shard_split
from paraclip_core.errors import ConfigError, InputError
from paraclip_core.paths import below, expand
from paraclip_core.pictures import holds_pictures

NOT_CAPTIONS = ("readme", "license", "licence", "copying", "notice", "citation")
"""What names begin with that hold no captions, in either spelling."""


@dataclass(frozen=True)
class SourceFile:
    """One file with captions. It may be missing, which is reported when it is read."""

    path: Path
    name: str
    """Its name in tables: the path relative to `data.root`."""
    form: str
    """Its format, ``unknown`` if it cannot be recognized."""
    options: SourceOptions

    @property
    def images(self) -> str | None:
        """Archive of its images, relative to `data.root`: as configured, or the file itself for webdataset tars and
        Parquet with pictures in a column."""
        return self.options.images or (self.name if self.form == "webdataset" or self.pictures else None)

    @cached_property
    def pictures(self) -> bool:
        """Whether it is Parquet that contains its images."""
        inside = self.form == "parquet" and self.options.images is None
        return inside and holds_pictures(self.path, self.options.columns.image)

    @property
    def split(self) -> str:
        """Split of rows that do not state one: as configured, or from the name of Parquet with pictures."""
        named = shard_split(self.path) if self.options.split is None and self.pictures else None
        return named or configured_split(self.options.split)


def read_source(file: SourceFile, on_error: Literal["stop", "skip"] = "stop") -> Iterator[RowBatch]:
    """Yield the rows of a source file in batches.

    With `skip` an unreadable file gives one reject without a row; the rows before the damage are kept.
    """
    try:
        form = detect(file.path) if file.form == "unknown" and file.path.is_file() else file.form
        yield from read(file.path, file.options, form)
    except InputError as error:
        if on_error == "stop":
            raise
        # The path differs between machines, and equal inputs must give equal bytes.
        detail = str(error).replace(str(file.path), file.name)
        yield RowBatch(rejects=[Reject(None, "unreadable", detail)])


def list_files(root: Path, sources: Sequence[SourceOptions], own: Path | None = None) -> list[SourceFile]:
    """Every caption file of the sources: in the order of the sources, those of a folder sorted by name.

    A folder is searched recursively. Left out are hidden files, the source's own `images` (unless these are the whole
    folder) and the folder of artifacts `own`. With format `auto`, so are files without a known suffix, READMEs,
    img2dataset's ``_stats.json``, a Parquet file next to a webdataset tar of the same name, whose captions it repeats,
    and plain text unless there is nothing else. A missing path or a folder without captions is returned as it is, and
    its reader raises the error.
    """
    if not sources:
        raise ConfigError("data.sources is empty; name at least one file or folder with captions")
    return [file for source in sources for file in _files(root, source, own)]


def _files(root: Path, source: SourceOptions, own: Path | None) -> Iterator[SourceFile]:
    path = root / expand(source.path)
    if not path.is_dir():
        yield _source_file(path, PurePosixPath(source.path), source)
        return
    files = _shown(root, source, own)
    if source.format == "auto":
        texts = [p for p in files if named_format(p) == "text" and not p.name.lower().startswith(NOT_CAPTIONS)]
        files = _structured(files) or texts
    else:
        expected = source.format if READERS[source.format].suffixes else "json"
        files = [file for file in files if named_format(file) == expected]
    for inner in files or [path]:
        yield _source_file(inner, PurePosixPath(source.path) / inner.relative_to(path).as_posix(), source)


def _source_file(path: Path, name: PurePosixPath, source: SourceOptions) -> SourceFile:
    form = source.format if source.format != "auto" else "unknown"
    if source.format == "auto" and path.is_file():
        with suppress(InputError):
            form = detect(path)
    return SourceFile(path, str(name), form, source)


def _shown(root: Path, source: SourceOptions, own: Path | None) -> list[Path]:
    path, images = root / expand(source.path), root / expand(source.images) if source.images else None
    # A folder that holds both captions and images would otherwise be skipped entirely.
    skipped = images if images is not None and path in images.parents else None
    # Otherwise the next run would read what this one writes.
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
