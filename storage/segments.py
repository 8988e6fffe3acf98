"""The generation cache's truth: immutable Parquet segments in one folder, each named by its turn and its contents.

A segment's name is ``<number>-<digest>.parquet``: the number says in which order segments were published, the digest
(blake2b-128 of the file's bytes) makes equal contents one segment and shows a file that was cut short or changed.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from paraclip_core.errors import ArtifactError
from storage.atomic import read_json, storage_error, sweep_drafts, sync_folder, write_json

__all__ = ["INDEXED", "SegmentDraft", "SegmentFolder", "TornSegment", "check_generations", "digest_of", "parsed"]

log = logging.getLogger(__name__)

INDEXED = pa.schema(
    [
        pa.field("key", pa.binary(16), nullable=False),
        pa.field("step", pa.int8(), nullable=False),
        pa.field("attempt", pa.int16(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("completions", pa.list_(pa.string()), nullable=False),
    ]
)
"""The columns that every segment has; what else a segment holds is its writer's affair."""

# Dictionaries and statistics of columns whose values are all different cost time and save nothing.
DIFFERENT = ("key", "input", "completions")
NAME = re.compile(r"(\d{8,})-([0-9a-f]{32})\.parquet")
# Says which segments the newest big one stands for, until they are deleted and the index has followed.
REPLACED = ".replaced.json"


class TornSegment(Exception):
    """A segment's file is not what its name says, or not readable; it never leaves `storage`."""


@dataclass(frozen=True)
class SegmentDraft:
    """A segment that is on disk under a temporary name."""

    path: Path
    digest: str


class SegmentFolder:
    """The folder ``<cache>/segments``. Publish, set aside and list only while holding the cache's lock."""

    def __init__(self, folder: Path) -> None:
        """`folder` is made when the first segment is written."""
        self.folder = folder
        # A cache of ten million rows can have ten thousand segments, whose names are looked at whenever one is added.
        self._parsed: dict[str, tuple[int, str]] = {}
        self._last: tuple[list[str], list[str]] = [], []

    def draft(self, table: pa.Table) -> SegmentDraft:
        """Write `table` to disk without publishing it; needs no lock.

        Raises:
            ArtifactError: the folder is read-only or the disk is full.
        """
        sink = pa.BufferOutputStream()
        repeated = [name for name in table.column_names if name not in DIFFERENT]
        pq.write_table(
            table,
            sink,
            compression="zstd",
            use_dictionary=repeated,  # pyright: ignore[reportArgumentType]
            write_statistics=repeated,  # pyright: ignore[reportArgumentType]
        )
        return self.draft_bytes(memoryview(sink.getvalue()))

    def draft_bytes(self, data: bytes | memoryview) -> SegmentDraft:
        """Write a segment's file as it is, for example one from another folder."""
        path = self.folder / f".{uuid.uuid4().hex}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                path.unlink()
            raise storage_error(error, path) from error
        return SegmentDraft(path, _digest(data))

    def publish(self, drafts: Iterable[SegmentDraft]) -> list[str]:
        """Give drafts their names, in order; one whose contents are there already is dropped. Returns new names."""
        present = [self._parsed[name] for name in self._present(self._listing())]
        digests = {digest for _, digest in present}
        number = max(present, default=(0, ""))[0]
        published = []
        try:
            for draft in drafts:
                if draft.digest in digests:
                    draft.path.unlink()
                    continue
                number += 1
                name = f"{number:08d}-{draft.digest}.parquet"
                draft.path.rename(self.folder / name)
                digests.add(draft.digest)
                published.append(name)
            sync_folder(self.folder)
        except OSError as error:
            raise storage_error(error, self.folder) from error
        return published

    def replace(self, old: Sequence[str], draft: SegmentDraft) -> str:
        """Let `draft`, which holds the rows of `old` in order, stand for them from one moment to the next.

        That moment is the renaming: before it only `old` are listed, after it only the new one, whatever is killed.
        Call `settle` when the index has followed. Returns the new name.
        """
        self.settle()
        name = f"{_number(old[0]):08d}-{draft.digest}.parquet"
        write_json(self.folder / REPLACED, {"new": name, "old": list(old)})
        try:
            draft.path.rename(self.folder / name)
            sync_folder(self.folder)
            self._unlink(old)
        except OSError as error:
            raise storage_error(error, self.folder) from error
        return name

    def replaced(self) -> set[str]:
        """Names that the newest big segment stands for and that `settle` was not called for yet."""
        return self._replaced(self._listing())

    def settle(self) -> None:
        """Finish a replacement, or forget one that was killed before its moment."""
        listing = self._listing()
        if REPLACED not in listing:
            return
        try:
            self._unlink(self._replaced(listing).intersection(listing))
            sync_folder(self.folder)
            (self.folder / REPLACED).unlink()
        except OSError as error:
            raise storage_error(error, self.folder) from error

    def names(self) -> list[str]:
        """Names of all segments, first published first; files that are no segments are left alone."""
        listing, (before, names) = self._listing(), self._last
        # What is replaced also stands in a file, so the same listing does not mean the same segments.
        if listing != before or REPLACED in listing:
            names = sorted(self._present(listing), key=lambda name: (self._parsed[name][0], name))
            self._last = listing, names
        return list(names)

    def torn(self) -> int:
        """How many segments were set aside."""
        return sum(name.endswith(".torn") for name in self._listing())

    def bytes(self) -> int:
        """Bytes of all segments together."""
        return sum(self.size(name) for name in self.names())

    def size(self, name: str) -> int:
        """Bytes of one segment; 0 where it has just gone."""
        try:
            return (self.folder / name).stat().st_size
        except FileNotFoundError:
            return 0

    def read_bytes(self, name: str) -> bytes:
        """A segment's file, compared with its name.

        Raises:
            TornSegment: it was cut short or changed.
            ArtifactError: it cannot be read at all.
        """
        try:
            data = (self.folder / name).read_bytes()
        except OSError as error:
            raise ArtifactError(f"cannot read {self.folder / name}: {error.strerror}") from error
        if _digest(data) != digest_of(name):
            raise TornSegment(f"its {len(data)} bytes are not those that were written")
        return data

    def read(self, name: str) -> pa.Table:
        """The `INDEXED` columns of a segment.

        Raises:
            TornSegment: it was cut short or changed, or lacks a column.
            ArtifactError: it cannot be read at all.
        """
        return parsed(self.read_bytes(name), INDEXED.names).select(INDEXED.names)

    def set_aside(self, name: str, why: object) -> None:
        """Rename a torn segment, so that it is neither read again nor lost."""
        path = self.folder / name
        log.warning("segment %s is torn and set aside as %s.torn: %s", path, name, why)
        try:
            path.rename(path.with_name(f"{name}.torn"))
        except OSError as error:
            raise storage_error(error, path) from error

    def sweep(self) -> None:
        """Delete drafts that a killed writer left behind more than a day ago."""
        sweep_drafts(self.folder)

    def _present(self, listing: Sequence[str]) -> list[str]:
        """Names of all segments among those of files, in any order."""
        for name in listing:
            if name not in self._parsed and NAME.fullmatch(name):
                self._parsed[name] = _number(name), digest_of(name)
        replaced = self._replaced(listing)
        return [name for name in listing if name in self._parsed and name not in replaced]

    def _replaced(self, listing: Sequence[str]) -> set[str]:
        if REPLACED not in listing:
            return set()
        try:
            found = read_json(self.folder / REPLACED)
        except ArtifactError:
            if (self.folder / REPLACED).exists():
                raise
            return set()
        try:
            # Without the new one the old ones are still what counts.
            return set(found["old"]) if found["new"] in listing else set()
        except (KeyError, TypeError) as error:
            raise ArtifactError(
                f"{self.folder / REPLACED} is not as `paraclip cache compact` writes it ({error}); delete it"
            ) from error

    def _unlink(self, names: Iterable[str]) -> None:
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def _listing(self) -> list[str]:
        try:
            return os.listdir(self.folder)  # noqa: PTH208 (names only; ten thousand of them in milliseconds)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ArtifactError(f"cannot read {self.folder}: {error.strerror}") from error


def parsed(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a segment's bytes; all columns, or those named and dictionaries of what repeats.

    Raises:
        TornSegment: it is no Parquet file, or lacks a column.
    """
    try:
        dictionaries = None if columns is None else ["model", "prompt"]
        table = pq.read_table(io.BytesIO(data), columns=columns, read_dictionary=dictionaries)
        check_generations(table)
    except (pa.ArrowException, OSError, ArtifactError) as error:
        raise TornSegment(str(error)) from error
    return table


def check_generations(table: pa.Table) -> None:
    """See that a table has the columns that the cache needs.

    Raises:
        ArtifactError: a column is missing, of another type, or has nulls.
    """
    for field in INDEXED:
        if field.name not in table.column_names:
            raise ArtifactError(f"generations lack the column {field.name!r} ({field.type})")
        column = table.column(field.name)
        found = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if found != field.type:
            raise ArtifactError(f"column {field.name!r} of the generations is {found} instead of {field.type}")
        if column.null_count:
            raise ArtifactError(f"column {field.name!r} of the generations has {column.null_count} nulls")


def digest_of(name: str) -> str:
    """The digest in a segment's name."""
    return name.partition("-")[2].removesuffix(".parquet")


def _number(name: str) -> int:
    return int(name.partition("-")[0])


def _digest(data: bytes | memoryview) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
