"""Append-only Parquet parts, the truth of the generation cache: immutable files, each named by its turn and contents.

A part's name is ``<number>-<digest>.parquet``. The number says in which order parts were published. The digest
(blake2b-128 of the file's bytes) makes equal contents one part and shows a file that was cut short or changed.
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
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from paraclip_core.errors import ArtifactError
from storage.files import read_json, storage_error, sweep_drafts, sync_folder, write_json

__all__ = ["NAME", "PartDraft", "PartFolder", "TornPart", "check_columns", "digest_of", "order_of"]

log = logging.getLogger(__name__)

NAME = re.compile(r"(\d{8,})-([0-9a-f]{32})\.parquet")
# Dictionaries and statistics of columns whose values are all different cost time and save nothing.
DIFFERENT = ("key", "input", "completions", "generation", "parent", "accepted", "answer", "similarity")
# Says which parts the newest big one stands for, until they are deleted and the table has followed.
REPLACED = ".replaced.json"


class TornPart(Exception):
    """A part's file is not what its name says, or not readable; it never leaves `storage`."""

    def __init__(self, name: str, why: object) -> None:
        """`name` is the part's."""
        super().__init__(str(why))
        self.name = name


class PartDraft(NamedTuple):
    """A part that is on disk under a temporary name."""

    path: Path
    digest: str


class Replacement(NamedTuple):
    """A part that takes the place of others."""

    new: str
    old: Sequence[str]


class Footer(NamedTuple):
    """What a part says about itself."""

    rows: int
    bytes: int
    schema: pa.Schema


class PartFolder:
    """A folder of parts. Publish, set aside and replace only while holding the cache's lock."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        """`schema` has the columns that every part needs; `folder` is made when the first part is written."""
        self.folder, self.schema = folder, schema

    def draft(self, table: pa.Table) -> PartDraft:
        """Write `table` to disk without publishing it; needs no lock.

        Raises:
            ArtifactError: the folder is read-only or the disk is full.
        """
        sink = pa.BufferOutputStream()
        repeated: Any = [name for name in table.column_names if name not in DIFFERENT]
        pq.write_table(table, sink, compression="zstd", use_dictionary=repeated, write_statistics=repeated)
        return self.draft_bytes(memoryview(sink.getvalue()))

    def draft_bytes(self, data: bytes | memoryview) -> PartDraft:
        """Write a part's file as it is, for example one from another folder."""
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
        return PartDraft(path, _digest(data))

    def publish(self, drafts: Iterable[PartDraft]) -> list[str]:
        """Give drafts their names, in order; one whose contents are there already is dropped. Returns new names."""
        names = self.names()
        digests = {digest_of(name) for name in names}
        number = order_of(names[-1])[0] if names else 0
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

    def replace(self, old: Sequence[str], draft: PartDraft) -> None:
        """Let `draft`, which holds the rows of `old` in order, stand for them from one moment to the next.

        That moment is the renaming: before it only `old` are listed, after it only the new one, whatever is killed.
        Call `settle` when the table has followed.
        """
        self.settle()
        name = f"{order_of(old[0])[0]:08d}-{draft.digest}.parquet"
        write_json(self.folder / REPLACED, {"new": name, "old": list(old)})
        try:
            draft.path.rename(self.folder / name)
            sync_folder(self.folder)
            self._unlink(old)
        except OSError as error:
            raise storage_error(error, self.folder) from error

    def replacement(self) -> Replacement | None:
        """The replacement that `settle` was not called for yet.

        Raises:
            ArtifactError: its note is damaged.
        """
        path = self.folder / REPLACED
        if not path.exists():
            return None
        try:
            note = read_json(path)
            replacement = Replacement(str(note["new"]), list(note["old"]))
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"{path} is not as `paraclip cache compact` writes it ({error}); delete it") from error
        except ArtifactError:
            if path.exists():
                raise
            return None
        # Without the new one the old ones are still what counts.
        return replacement if (self.folder / replacement.new).exists() else None

    def settle(self) -> None:
        """Finish a replacement, or forget one that was killed before its moment."""
        if not (self.folder / REPLACED).exists():
            return
        replacement = self.replacement()
        try:
            self._unlink(replacement.old if replacement else ())
            sync_folder(self.folder)
            (self.folder / REPLACED).unlink()
        except OSError as error:
            raise storage_error(error, self.folder) from error

    def names(self) -> list[str]:
        """Names of all parts, first published first; files that are no parts are left alone."""
        listing = [name for name in self._listing() if NAME.fullmatch(name)]
        replacement = self.replacement()
        hidden = replacement.old if replacement and replacement.new in listing else ()
        return sorted(set(listing).difference(hidden), key=order_of)

    def torn(self) -> int:
        """How many parts were set aside."""
        return sum(name.endswith(".torn") for name in self._listing())

    def read_bytes(self, name: str) -> bytes:
        """A part's file, compared with its name.

        Raises:
            TornPart: it was cut short or changed.
            ArtifactError: it cannot be read at all.
        """
        try:
            data = (self.folder / name).read_bytes()
        except OSError as error:
            raise ArtifactError(f"cannot read {self.folder / name}: {error.strerror}") from error
        if _digest(data) != digest_of(name):
            raise TornPart(name, f"its {len(data)} bytes are not those that were written")
        return data

    def footer(self, name: str) -> Footer:
        """What a part says about itself, once its bytes and columns are as they should be.

        Raises:
            TornPart: it was cut short or changed, or lacks a column.
            ArtifactError: it cannot be read at all.
        """
        data = self.read_bytes(name)
        try:
            with pq.ParquetFile(io.BytesIO(data)) as file:
                check_columns(file.schema_arrow.empty_table(), self.schema)
                return Footer(file.metadata.num_rows, len(data), file.schema_arrow)
        except (pa.ArrowException, OSError, ArtifactError) as error:
            raise TornPart(name, error) from error

    def read(self, name: str) -> pa.Table:
        """All columns of a part.

        Raises:
            TornPart: it was cut short or changed, or lacks a column.
            ArtifactError: it cannot be read at all.
        """
        data = self.read_bytes(name)
        try:
            table = pq.read_table(io.BytesIO(data))
            check_columns(table, self.schema)
        except (pa.ArrowException, OSError, ArtifactError) as error:
            raise TornPart(name, error) from error
        return table

    def set_aside(self, torn: TornPart) -> None:
        """Rename a torn part, so that it is neither read again nor lost."""
        path = self.folder / torn.name
        log.warning("part %s is torn and set aside as %s.torn: %s", path, torn.name, torn)
        try:
            path.rename(path.with_name(f"{torn.name}.torn"))
        except OSError as error:
            raise storage_error(error, path) from error

    def sweep(self) -> None:
        """Delete drafts that a killed writer left behind more than a day ago."""
        sweep_drafts(self.folder)

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


def check_columns(table: pa.Table, schema: pa.Schema) -> None:
    """See that a table has the columns of a schema.

    Raises:
        ArtifactError: a column is missing, of another type, or has nulls where there may be none.
    """
    for field in schema:
        if field.name not in table.column_names:
            raise ArtifactError(f"the table lacks the column {field.name!r} ({field.type})")
        column = table.column(field.name)
        value_type = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if value_type != field.type:
            raise ArtifactError(f"column {field.name!r} is {value_type} instead of {field.type}")
        if column.null_count and not field.nullable:
            raise ArtifactError(f"column {field.name!r} has {column.null_count} nulls")


def digest_of(name: str) -> str:
    """The digest in a part's name."""
    return name.partition("-")[2].removesuffix(".parquet")


def order_of(name: str) -> tuple[int, str]:
    """Sorts parts by their numbers; two machines may have given the same one."""
    return int(name.partition("-")[0]), name


def _digest(data: bytes | memoryview) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
