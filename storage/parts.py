"""Append-only Parquet parts, the truth of the answers cache: immutable files, each named by its turn and contents.

A part's name is ``<number>-<digest>.parquet``. Numbers are given in turn, and names sort by them. The digest
(blake2b-128 of the file's bytes) makes equal contents one part and shows that a file was truncated or changed. So
merging the parts of two machines is a union of files.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from paraclip.storage.files import sync_folder, write_flushed
from paraclip.storage.object_store import RemoteFolder
from paraclip_core.errors import ArtifactError

log = logging.getLogger(__name__)

NAME = re.compile(r"\d{8}-[0-9a-f]{32}\.parquet")
# Dictionaries and statistics of columns whose values are all different cost time and save nothing.
DIFFERENT = ("key", "input", "completions", "generation", "parent", "accepted", "answer", "similarity")
PULL_SECONDS = 60.0
BATCH = 64


class DamagedPart(Exception):
    """A part's file does not match its name, or cannot be read; this error never leaves `storage`."""

    def __init__(self, name: str, why: object) -> None:
        super().__init__(str(why))
        self.name = name


class PartFolder:
    """A folder of parts. Publish, set aside and delete only while holding the cache's lock."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        """`schema` has the columns that every part needs; `folder` is created with the first part."""
        self.folder, self.schema = folder, schema

    def draft(self, table: pa.Table) -> Path:
        """Write `table` to disk under a temporary name that has its digest; needs no lock."""
        sink = pa.BufferOutputStream()
        repeated: Any = [name for name in table.column_names if name not in DIFFERENT]
        pq.write_table(table, sink, compression="zstd", use_dictionary=repeated, write_statistics=repeated)
        data = memoryview(sink.getvalue())
        path = self.folder / f".{uuid.uuid4().hex}-{_digest(data)}.tmp"
        # Directly under this name: `publish` renames it and flushes the folder.
        write_flushed(path, lambda file: file.write(data))
        return path

    def publish(self, drafts: Iterable[Path], number: int = 0) -> list[str]:
        """Give drafts their names, in order; one whose contents exist already is dropped. Returns the new names.

        `number` is the number of all of them; 0 gives them the next ones.
        """
        names = self.names()
        digests = {digest_of(name) for name in names}
        last = int(names[-1][:8]) if names else 0
        published = []
        for draft in drafts:
            digest = digest_of(draft.name)
            if digest in digests:
                draft.unlink()
                continue
            last += 1
            name = f"{number or last:08d}-{digest}.parquet"
            draft.rename(self.folder / name)
            digests.add(digest)
            published.append(name)
        sync_folder(self.folder)
        return published

    def delete(self, names: Iterable[str]) -> None:
        """Delete parts whose rows another one has."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Names of all parts, first published first; files that are not parts are ignored."""
        return sorted(name for name in self._listing() if NAME.fullmatch(name))

    def damaged(self) -> int:
        """How many parts were set aside."""
        return sum(name.endswith(".damaged") for name in self._listing())

    def open(self, name: str) -> pq.ParquetFile:
        """Read a part into memory; its bytes must be those that were written, and it must have the columns."""
        data = (self.folder / name).read_bytes()
        if _digest(data) != digest_of(name):
            raise DamagedPart(name, f"its {len(data)} bytes are not those that were written")
        try:
            file = pq.ParquetFile(io.BytesIO(data))
            check_columns(file.schema_arrow.empty_table(), self.schema)
        except (pa.ArrowException, OSError, ArtifactError) as error:
            raise DamagedPart(name, error) from error
        return file

    def set_aside(self, damaged: DamagedPart) -> None:
        """Rename a damaged part, so that it is neither read again nor lost."""
        path = self.folder / damaged.name
        log.warning("part %s is damaged and set aside as %s.damaged: %s", path, damaged.name, damaged)
        path.rename(path.with_name(f"{damaged.name}.damaged"))

    def _listing(self) -> list[str]:
        try:
            return os.listdir(self.folder)  # noqa: PTH208 (names only; ten thousand of them in milliseconds)
        except FileNotFoundError:
            return []


class PartMirror:
    """The parts of a cache on an object store, and those here; a part's path is ``<folder>/<name>``.

    Every machine has all of them. If two answered the same request before they met, the lower name counts on both.
    """

    def __init__(self, remote: RemoteFolder, cache_folder: Path, folders: Iterable[str]) -> None:
        """`cache_folder` is created when the first part arrives; the parts are in its `folders`."""
        self._remote, self._folder, self._folders = remote, cache_folder, tuple(folders)
        self._pulled: float | None = None
        self._damaged: set[str] = set()

    def pull(self) -> None:
        """Download the parts that are missing here, unless that was done within the last minute."""
        now = time.monotonic()
        if self._pulled is not None and now - self._pulled < PULL_SECONDS:
            return
        try:
            paths = sorted(self._remote_parts() - self._local_parts() - self._damaged)
            for start in range(0, len(paths), BATCH):
                self._download(paths[start : start + BATCH])
        except ArtifactError as error:
            if self._pulled is None:
                raise
            log.warning("cannot fetch the answers of other machines: %s", error)
        self._pulled = now

    def push(self, paths: Iterable[str]) -> None:
        """Upload parts that were just published; what fails is safe here and left to :meth:`push_rest`."""
        try:
            self._upload(list(paths))
        except ArtifactError as error:
            log.warning("cannot upload new answers yet: %s", error)

    def push_rest(self) -> None:
        """Upload every part that the store lacks."""
        self._upload(sorted(self._local_parts() - self._remote_parts()))

    def _remote_parts(self) -> set[str]:
        listings = {folder: self._remote.sizes(f"cache/{folder}") for folder in self._folders}
        return {f"{folder}/{name}" for folder, names in listings.items() for name in names if NAME.fullmatch(name)}

    def _local_parts(self) -> set[str]:
        paths = (path for folder in self._folders for path in (self._folder / folder).glob("*.parquet"))
        return {f"{path.parent.name}/{path.name}" for path in paths if NAME.fullmatch(path.name)}

    def _upload(self, paths: list[str]) -> None:
        for start in range(0, len(paths), BATCH):
            self._remote.upload({f"cache/{path}": self._folder / path for path in paths[start : start + BATCH]})

    def _download(self, paths: list[str]) -> None:
        # A killed download leaves a draft, which the cache sweeps.
        drafts = {path: (self._folder / path).with_name(f".{uuid.uuid4().hex}.tmp") for path in paths}
        try:
            self._remote.download({f"cache/{path}": draft for path, draft in drafts.items()})
            for path, draft in drafts.items():
                if _digest(draft.read_bytes()) == digest_of(Path(path).name):
                    draft.replace(self._folder / path)
                    continue
                self._damaged.add(path)
                address = self._remote.name(f"cache/{path}")
                log.warning("%s is damaged and left out; upload it again from a machine that has it", address)
            for folder in {draft.parent for draft in drafts.values()}:
                sync_folder(folder)
        finally:
            for draft in drafts.values():
                with suppress(OSError):
                    draft.unlink()


def check_columns(table: pa.Table, schema: pa.Schema) -> None:
    """Check that a table has the columns of a schema."""
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
    """The digest in a part's or a draft's name."""
    return name.partition("-")[2].partition(".")[0]


def _digest(data: bytes | memoryview) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
