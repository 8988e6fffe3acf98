"""From the configured sources to accepted captions and rejects: which files, read by which reader; then cleaned,
filtered, de-duplicated and tokenized, in batches.

A format is one row of :data:`READERS`, found by the option, or by a file's name and first bytes; a reader of the user's
own is named as `package.module:function`. The order of the files depends on their names alone. A file that cannot be
read or recognized raises InputError, a wrong option ConfigError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import compress
from operator import not_
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from paraclip_core import tables
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
from paraclip_core.captions.rows import Outcome, Reject, RowBatch, cleaned, configured_split, reject_batch, split_name
from paraclip_core.captions.tokens import Tokenizer
from paraclip_core.config import DataOptions, SourceOptions
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


def read_source(file: SourceFile) -> Iterator[RowBatch]:
    """Rows of a source file, batch by batch."""
    form = detect(file.path) if file.form == "unknown" and file.path.is_file() else file.form
    return read(file.path, file.options, form)


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


Keys = npt.NDArray[np.uint64]

UNIQUE = "give one of the sources a data.sources[].image_prefix"
"""What fixes a clash of image ids."""
BY_CONTENT = "name the column of pictures in data.sources[].columns.image to have ids of their contents"
"""What fixes it for pictures inside of Parquet."""
_NO_LICENCE = frozenset({"?", "unknown", "none", "null"})


class CaptionPipeline:
    """Takes source files one after another; what it has seen in one counts as a duplicate in the next.

    Memory: the keys of the duplicate filter (8 bytes an accepted caption, and 8 or 16 an image with an archive), 8
    bytes an image that is not trained on, and one batch.
    """

    def __init__(self, options: DataOptions, files: Sequence[SourceFile]) -> None:
        """Prepare for `files`, whose archives of images decide whether image ids can clash."""
        self._options = options
        self._tokenizer = Tokenizer()
        self._captions, self._images, self._owned = KeySet(), KeySet(), KeySet()
        self._evaluated = {split: KeySet() for split in ("val", "test")}
        self._trains_images = any(file.images is not None for file in files)
        self._pictures = {file.name for file in files if file.pictures}
        # One file alone names each image as it likes, but nothing but their ids says which pictures are the same.
        self._clashes = bool(self._pictures) or sum(file.images is not None for file in files) > 1

    @property
    def images(self) -> int:
        """Different images of accepted captions whose archive is known."""
        return len(self._images)

    def run(self, file: SourceFile) -> Iterator[Outcome]:
        """Accepted and rejected rows of a file.

        With `on_error: skip` a file that is bad as a whole gives one reject without a row; the rows before the damage
        are kept.
        """
        try:
            for batch in read_source(file):
                yield self._outcome(batch, file)
        except InputError as error:
            if self._options.on_error == "stop":
                raise
            # The path differs between machines, and equal inputs must give equal bytes.
            detail = str(error).replace(str(file.path), file.name)
            yield self._outcome(RowBatch(rejects=[Reject(None, "unreadable", detail)]), file)

    def restore(self, accepted: pa.RecordBatch) -> None:
        """Remember captions that an earlier try accepted (columns caption_id, image_id, image_path, images, split)."""
        splits = accepted.column("split").to_pylist()
        self._captions.add(_row_keys(accepted.column("caption_id").to_pylist(), splits))
        ids, paths, groups = (accepted.column(name).to_pylist() for name in ("image_id", "image_path", "images"))
        for group in sorted({group for group in groups if group is not None}):
            mine = [of == group for of in groups]
            self._own(list(compress(ids, mine)), list(compress(paths, mine)), group)
        self._note_splits(ids, splits)

    def _outcome(self, batch: RowBatch, file: SourceFile) -> Outcome:
        batch.drop_undecodable()
        if prefix := file.options.image_prefix:
            batch.image_ids = [None if image is None else prefix + image for image in batch.image_ids]
        texts = self._cleaned(batch, file.split, file.images)
        texts = self._without_conflicts(batch, texts, file)
        ids = [tables.text_hash(image, text) for image, text in zip(batch.image_ids, texts, strict=True)]
        new = self._captions.add(_row_keys(ids, batch.splits)).tolist()
        if not all(new):
            for n in compress(range(len(batch)), map(not_, new)):
                batch.reject(n, "duplicate", "the same caption of the same image came before")
            ids, texts = list(compress(ids, new)), list(compress(texts, new))
            batch.keep(new)
        self._own(batch.image_ids, batch.image_paths, file.images)
        self._note_splits(batch.image_ids, batch.splits)
        return Outcome(self._accepted(batch, file, ids, texts), reject_batch(batch.rejects, file.name))

    def _splits_of(self, batch: RowBatch) -> dict[str | None, str]:
        """The split of images that an earlier row held out: a row that states none, such as a mark, follows it."""
        names = [image for image in dict.fromkeys(batch.image_ids) if image is not None]
        if None not in batch.splits or not any(map(len, self._evaluated.values())):
            return {}
        keys = text_keys(names)
        return {
            image: split for split, seen in self._evaluated.items() for image in compress(names, seen.contains(keys))
        }

    def _note_splits(self, ids: list[str | None], splits: Sequence[str | None]) -> None:
        for split, seen in self._evaluated.items():
            names = [image for image, of in zip(ids, splits, strict=True) if of == split and image is not None]
            seen.add(text_keys(list(dict.fromkeys(names))))

    def _cleaned(self, batch: RowBatch, default: str, images: str | None) -> list[str]:
        """Cleaned texts of the rows that pass the filters; the batch keeps these rows, with the usual splits' names."""
        texts: list[str] = []
        splits: list[str | None] = []
        passed: list[bool] = []
        evaluated, share = self._splits_of(batch), self._options.held_out
        for n, (raw, named) in enumerate(zip(batch.captions, batch.splits, strict=True)):
            text, problem = cleaned(raw, self._options)
            image, split = batch.image_ids[n], default if named is None else split_name(named)
            if named is None and split == "train" and (share or evaluated):
                held_out = share > 0 and int(text_keys([image or text], "held out")[0]) < share * 2**64
                split = evaluated.get(image, "val" if held_out else split)
            unusable = self._trains_images and split == "train" and (image is None or images is None)
            if problem is None and unusable:
                problem = "no_image", "the row names no image, so it cannot be trained on"
            if problem is None and split is None:
                problem = "unknown_split", f"split {str(named)[:80]!r}, expected train, val or test"
            if problem is None:
                texts.append(text)
                splits.append(split)
            else:
                batch.reject(n, *problem)
            passed.append(problem is None)
        batch.keep(passed)
        batch.splits = splits
        return texts

    def _without_conflicts(self, batch: RowBatch, texts: list[str], file: SourceFile) -> list[str]:
        """The texts whose images' ids name no other images of an archive; the batch keeps their rows."""
        if file.images is None or not self._clashes:
            return texts
        unique = _distinct(batch.image_ids, batch.image_paths)
        places = _places(unique, self._salt(file.images))
        named = self._images.contains(text_keys([image for image, _ in unique]))
        if file.images in self._pictures:
            first: dict[str, int] = {}
            # An id that came before in this batch with another place names another image, too.
            pairs = zip(unique, places.tolist(), strict=True)
            named |= np.array([first.setdefault(image, place) != place for (image, _), place in pairs], np.bool_)
        clashing = set(compress(unique, named & ~self._owned.contains(places)))
        free = [pair not in clashing for pair in zip(batch.image_ids, batch.image_paths, strict=True)]
        for n in compress(range(len(batch)), map(not_, free)):
            image = f"image id {str(batch.image_ids[n])[:200]!r}"
            fix = BY_CONTENT if file.pictures else UNIQUE
            batch.reject(n, "image_conflict", f"{image} already names another image; {fix}")
        batch.keep(free)
        return list(compress(texts, free))

    def _own(self, ids: list[str | None], paths: list[str | None], group: str | None) -> None:
        """Remember the images of accepted captions, and where they are if ids can clash."""
        if group is None or not (unique := _distinct(ids, paths)):
            return
        self._images.add(text_keys([image for image, _ in unique]))
        if self._clashes:
            self._owned.add(_places(unique, self._salt(group)))

    def _salt(self, group: str) -> str:
        """What tells images of one name in two archives apart. A picture's name says what it is, wherever it lies."""
        return "" if group in self._pictures else group

    def _accepted(self, batch: RowBatch, file: SourceFile, ids: list[bytes], texts: list[str]) -> pa.RecordBatch:
        count, default = len(batch), file.options.license
        columns = [
            pa.array(ids, pa.binary(16)),
            pa.array(batch.image_ids, pa.string()),
            pa.array(batch.image_paths if file.images is not None else [None] * count, pa.string()),
            pa.repeat(pa.scalar(file.images, pa.string()), count),
            pa.array(texts, pa.string()),
            pa.array(batch.captions, pa.string()),
            self._tokenizer.encode_batch(texts),
            pa.array(batch.splits, pa.string()),
            pa.array([default if name is None or name.lower() in _NO_LICENCE else name for name in batch.licences]),
            pa.repeat(pa.scalar(file.name, pa.string()), count),
            pa.array(batch.rows, pa.int64()),
        ]
        return pa.RecordBatch.from_arrays(
            [column.cast(of.type) for column, of in zip(columns, tables.CAPTIONS, strict=True)], schema=tables.CAPTIONS
        )


def _distinct(ids: list[str | None], paths: list[str | None]) -> list[tuple[str, str | None]]:
    return list(dict.fromkeys((image, path) for image, path in zip(ids, paths, strict=True) if image is not None))


def _places(images: list[tuple[str, str | None]], group: str) -> Keys:
    """Keys of images with archive and file name. Folders do not count: not all sources of one archive name them."""
    return text_keys([f"{image}\0{PurePosixPath(path or '').name}" for image, path in images], group)


def _row_keys(ids: Sequence[bytes], splits: Sequence[str | None]) -> Keys:
    """The ids' keys, others for rows that are held out: one that is trained on, too, is no duplicate but leakage."""
    held_out = np.array([split != "train" for split in splits], np.bool_)
    # Two of ten million captions share the first eight bytes of their ids with probability 3e-6.
    keys = np.frombuffer(b"".join(ids), dtype="<u8")[::2].astype(np.uint64)
    return np.where(held_out, ~keys, keys)


def text_keys(texts: Sequence[str], salt: str = "") -> Keys:
    """A 64-bit key of each text, uint64 [n]; other keys under another salt."""
    head = salt.encode() + b"\0"
    raw = b"".join(blake2b(head + text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(raw, dtype="<u8").astype(np.uint64)


class KeySet:
    """Distinct keys (8 bytes each) in sorted runs; the newest is merged when it has grown to half of the one before."""

    def __init__(self) -> None:
        self._runs: list[Keys] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Add keys (uint64, [n]); returns bool [n], True where a key comes for the first time, within `keys` too."""
        unique, first = np.unique(keys, return_index=True)
        fresh = ~self.contains(unique)
        new = np.zeros(len(keys), dtype=np.bool_)
        new[first[fresh]] = True
        if fresh.any():
            self._runs.append(unique[fresh])
            while len(self._runs) > 1 and 2 * len(self._runs[-1]) >= len(self._runs[-2]):
                merged = np.concatenate([self._runs.pop(), self._runs.pop()])
                merged.sort()
                self._runs.append(merged)
        return new

    def contains(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """bool [n], True where a key is in the set."""
        members = np.zeros(len(keys), dtype=np.bool_)
        for run in self._runs:
            places = np.minimum(np.searchsorted(run, keys), len(run) - 1)
            members |= run[places] == keys
        return members
