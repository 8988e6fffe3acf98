"""Append-only Parquet parts, the truth of the generation cache: immutable files, each named by its turn and contents.

A part's name is ``<number>-<digest>.parquet``. The number says in which order parts were published. The digest
(blake2b-128 of the file's bytes) makes equal contents one part and shows a file that was cut short or changed. So
bringing two machines together is a union of files.

Everything here raises ArtifactError where a disk or an object store fails.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from paraclip.storage.files import read_json, storage_errors, sweep_drafts, sync_folder, write_json
from paraclip.storage.object_store import RemoteFolder
from paraclip_core.errors import ArtifactError

log = logging.getLogger(__name__)

NAME = re.compile(r"(\d{8,})-([0-9a-f]{32})\.parquet")
# Dictionaries and statistics of columns whose values are all different cost time and save nothing.
DIFFERENT = ("key", "input", "completions", "generation", "parent", "accepted", "answer", "similarity")
# A part with this in its schema came from another cache, where it was paid for; compaction keeps the two kinds apart.
IMPORTED = {b"imported": b"1"}
# Says which parts the newest big one stands for, until they are deleted and the table has followed.
REPLACED = ".replaced.json"
FOLDERS = ("segments", "verdicts")
PULL_SECONDS = 60.0
BATCH = 64


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

    # Writing

    def draft(self, table: pa.Table) -> PartDraft:
        """Write `table` to disk without publishing it; needs no lock."""
        sink = pa.BufferOutputStream()
        repeated: Any = [name for name in table.column_names if name not in DIFFERENT]
        pq.write_table(table, sink, compression="zstd", use_dictionary=repeated, write_statistics=repeated)
        data = memoryview(sink.getvalue())
        path = self.folder / f".{uuid.uuid4().hex}.tmp"
        with storage_errors(path):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    path.unlink()
                raise
        return PartDraft(path, _digest(data))

    def publish(self, drafts: Iterable[PartDraft]) -> list[str]:
        """Give drafts their names, in order; one whose contents are there already is dropped. Returns new names."""
        names = self.names()
        digests = {digest_of(name) for name in names}
        number = order_of(names[-1])[0] if names else 0
        published = []
        with storage_errors(self.folder):
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
        return published

    def sweep(self) -> None:
        """Delete drafts that a killed writer left behind more than a day ago."""
        sweep_drafts(self.folder)

    # Replacing

    def replace(self, old: Sequence[str], draft: PartDraft) -> None:
        """Let `draft`, which holds the rows of `old` in order, stand for them from one moment to the next.

        That moment is the renaming: before it only `old` are listed, after it only the new one, whatever is killed.
        Call `settle` when the table has followed.
        """
        self.settle()
        name = f"{order_of(old[0])[0]:08d}-{draft.digest}.parquet"
        write_json(self.folder / REPLACED, {"new": name, "old": list(old)})
        with storage_errors(self.folder):
            draft.path.rename(self.folder / name)
            sync_folder(self.folder)
            self._unlink(old)

    def replacement(self) -> Replacement | None:
        """The replacement that `settle` was not called for yet."""
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
        with storage_errors(self.folder):
            self._unlink(replacement.old if replacement else ())
            sync_folder(self.folder)
            (self.folder / REPLACED).unlink()

    def _unlink(self, names: Iterable[str]) -> None:
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    # Reading

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
        """A part's file, compared with its name."""
        try:
            data = (self.folder / name).read_bytes()
        except OSError as error:
            raise ArtifactError(f"cannot read {self.folder / name}: {error.strerror}") from error
        if _digest(data) != digest_of(name):
            raise TornPart(name, f"its {len(data)} bytes are not those that were written")
        return data

    def footer(self, name: str) -> Footer:
        """What a part says about itself, once its bytes and columns are as they should be; errors as of `read`."""
        data = self.read_bytes(name)
        try:
            with pq.ParquetFile(io.BytesIO(data)) as file:
                check_columns(file.schema_arrow.empty_table(), self.schema)
                return Footer(file.metadata.num_rows, len(data), file.schema_arrow)
        except (pa.ArrowException, OSError, ArtifactError) as error:
            raise TornPart(name, error) from error

    def read(self, name: str) -> pa.Table:
        """All columns of a part."""
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
        with storage_errors(path):
            path.rename(path.with_name(f"{torn.name}.torn"))

    def _listing(self) -> list[str]:
        try:
            return os.listdir(self.folder)  # noqa: PTH208 (names only; ten thousand of them in milliseconds)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ArtifactError(f"cannot read {self.folder}: {error.strerror}") from error


class PartMirror:
    """The parts of a cache on an object store, and those here; a part's path is ``<folder>/<name>``.

    Every machine has all of them. Where two answered the same request before they met, the lower name counts on both.
    """

    def __init__(self, remote: RemoteFolder, cache_folder: Path) -> None:
        """`cache_folder` is made when the first part arrives."""
        self._remote, self._folder = remote, cache_folder
        self._pulled: float | None = None
        self._uploaded: set[str] = set()
        self._damaged: set[str] = set()

    def pull(self) -> None:
        """Download the parts that are not here, unless that was done within the last minute."""
        now = time.monotonic()
        if self._pulled is not None and now - self._pulled < PULL_SECONDS:
            return
        try:
            self._download(sorted(self._remote_parts() - self._local_parts() - self._damaged))
        except ArtifactError as error:
            if self._pulled is None:
                raise
            log.warning("the generations of other machines are not seen: %s", error)
        self._pulled = now

    def push(self, paths: Iterable[str]) -> None:
        """Upload parts that were just published; what fails is left to :meth:`push_rest`, for it is safe here."""
        try:
            self._upload(list(paths))
        except ArtifactError as error:
            log.warning("new generations are not uploaded yet: %s", error)

    def push_rest(self) -> None:
        """Upload every part that the store lacks."""
        local = self._local_parts()
        if local - self._uploaded:
            self._upload(sorted(local - self._remote_parts()))

    def _remote_parts(self) -> set[str]:
        listings = {folder: self._remote.sizes(f"cache/{folder}") for folder in FOLDERS}
        self._uploaded = {f"{folder}/{n}" for folder, names in listings.items() for n in names if NAME.fullmatch(n)}
        return self._uploaded

    def _local_parts(self) -> set[str]:
        paths = (path for folder in FOLDERS for path in (self._folder / folder).glob("*.parquet"))
        return {f"{path.parent.name}/{path.name}" for path in paths if NAME.fullmatch(path.name)}

    def _upload(self, paths: list[str]) -> None:
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            self._remote.upload({f"cache/{path}": self._folder / path for path in batch})
            self._uploaded.update(batch)

    def _download(self, paths: list[str]) -> None:
        if paths:
            log.info("downloading %s parts of the generation cache", len(paths))
        for start in range(0, len(paths), BATCH):
            # A killed download leaves a draft, which the cache sweeps.
            batch = {
                path: (self._folder / path).with_name(f".{uuid.uuid4().hex}.tmp")
                for path in paths[start : start + BATCH]
            }
            try:
                with storage_errors(self._folder):
                    self._remote.download({f"cache/{path}": draft for path, draft in batch.items()})
                    for path, draft in batch.items():
                        self._place(path, draft)
                    for folder in {draft.parent for draft in batch.values()}:
                        sync_folder(folder)
            finally:
                for draft in batch.values():
                    with suppress(OSError):
                        draft.unlink()

    def _place(self, path: str, draft: Path) -> None:
        with draft.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        if digest == digest_of(Path(path).name):
            draft.replace(self._folder / path)
            return
        self._damaged.add(path)
        address = self._remote.name(f"cache/{path}")
        log.warning("%s is damaged and left out; delete it, or upload it again from a machine that has it", address)


def check_columns(table: pa.Table, schema: pa.Schema) -> None:
    """See that a table has the columns of a schema."""
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
