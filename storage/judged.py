"""Judged blocks of a paraphrase step, kept beside the generations that they were judged from.

A block is a few record batches under a key that says what they depend on, apart from the generations. Those may only
grow: ``<cache>/judged/history.json`` says which segments were there when the last block was kept, and where the
segments no longer begin with those (one was lost, found torn, or put in front of others by another machine), an answer
may have changed and every kept block is forgotten. ``cache compact`` changes no answer and carries the history over.

Blocks lie in packs of up to 16 that follow each other, each pack in a file named by its first block's key, with a hash
of its contents in front. They only save time: one that is damaged, or gone, is judged again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from paraclip_core.errors import ArtifactError
from storage.atomic import storage_error, sweep_drafts, write_atomic
from storage.generations import GenerationStore
from storage.history import History

__all__ = ["JudgedStore"]

log = logging.getLogger(__name__)

PACK_BLOCKS = 16
KEEP_SECONDS = 30.0
"""Blocks of a slow pass wait no longer than about so long, so that a kill costs few."""
SUFFIX = ".blocks"
KEEP_DAYS = 30.0
"""Packs that no pass has used for so long are deleted."""
MOST_BYTES = 16 << 30
"""Of all packs together; those that were used last stay."""

Parts = Sequence[pa.RecordBatch]


class JudgedStore:
    """The blocks of one cache folder, for one pass over them in order; any number of processes may have one open."""

    def __init__(self, cache: GenerationStore, read_only: bool = False) -> None:
        """Forget what no longer fits the generations; `read_only` finds blocks, and changes nothing.

        Raises:
            ArtifactError: the cache cannot be read or locked.
        """
        self.folder = cache.folder / "judged"
        self._cache = cache
        self._read_only = read_only or (cache.folder.is_dir() and not os.access(cache.folder, os.W_OK))
        self._history = History(self.folder / "history.json")
        self._pack: dict[bytes, list[memoryview]] = {}
        self._waiting: list[tuple[bytes, list[pa.Buffer]]] = []
        self._asked = self._wrote = False
        self._kept = time.monotonic()
        self._finding = self._keeping = True
        self._open()

    def find(self, key: bytes) -> list[pa.RecordBatch] | None:
        """The record batches that were kept under `key`; None where there are none, or they are damaged."""
        if not self._finding:
            return None
        if key not in self._pack:
            self._pack = self._read(self._path(key))
        found = self._pack.get(key)
        if found is None:
            return None
        return [pa.ipc.open_stream(pa.py_buffer(part)).read_next_batch() for part in found]

    def keep(self, key: bytes, before: bytes, parts: Parts, asked: bool) -> None:
        """Keep a block; it is on disk after a few more, or with `close`.

        Args:
            key: 16 bytes over everything that the block depends on, apart from the generations.
            before: key of the block before it.
            parts: its record batches.
            asked: an answer in it was asked for in this pass. Where others have written into the cache meanwhile,
                theirs may be the one that counts, so nothing more is kept.
        """
        if not self._keeping or self._read_only:
            return
        if self._waiting and self._waiting[-1][0] != before:
            self._flush()
        self._waiting.append((key, [_encoded(part) for part in parts]))
        self._asked |= asked
        if len(self._waiting) >= PACK_BLOCKS or time.monotonic() - self._kept >= KEEP_SECONDS:
            self._flush()

    def stop(self) -> None:
        """Keep nothing more in this pass: what comes next depends on a block that cannot be kept."""
        self._flush()
        self._keeping = False

    def close(self) -> None:
        """Write what waits, and delete what nobody has used for long."""
        self._flush()
        if self._wrote:
            self._prune()

    def _open(self) -> None:
        if self._read_only and not self._cache.folder.is_dir():
            self._finding = False
            return
        if self._cache.mirror is not None:
            # What other machines answered first may not be here yet.
            self._cache.refresh()
        if self._read_only:
            names = self._cache.segments.names()
            self._finding = self._history.holds(names)
        else:
            with self._cache.locked():
                names = self._cache.segments.names()
                if not self._history.holds(names):
                    self._forget()
                    self._history.write(names)
        self._seen, self._published = History.mark(names), self._cache.published

    def _flush(self) -> None:
        self._kept = time.monotonic()
        if not self._waiting:
            return
        blocks, asked = self._waiting, self._asked
        self._waiting, self._asked = [], False
        try:
            with self._cache.locked():
                names = self._cache.segments.names()
                if not self._unchanged(names, asked):
                    log.info("other generations came or went during this pass; its next blocks are not kept")
                    self._keeping = False
                    return
                self._history.write(names)
                self._write(blocks)
        except ArtifactError as error:
            # Nobody wants to lose the work because it cannot be remembered.
            log.warning("judged blocks are not kept: %s", error)
            self._keeping = False

    def _unchanged(self, names: Sequence[str], asked: bool) -> bool:
        """Whether every answer that this pass has seen, and those before it, still counts."""
        count, published = self._seen.count, self._cache.published
        if not (self._history.holds(names) and self._seen.begins(names)):
            return False
        if asked and len(names) - count != published - self._published:
            return False
        self._seen, self._published = History.mark(names), published
        return True

    def _write(self, blocks: Sequence[tuple[bytes, list[pa.Buffer]]]) -> None:
        table = [{"key": key.hex(), "parts": [part.size for part in parts]} for key, parts in blocks]
        body = [json.dumps(table).encode() + b"\n", *(part for _, parts in blocks for part in parts)]
        digest = hashlib.blake2b(digest_size=32)
        for piece in body:
            digest.update(piece)
        head = digest.hexdigest().encode() + b"\n"
        write_atomic(self._path(blocks[0][0]), lambda file: file.writelines([head, *body]))
        self._wrote = True

    def _read(self, path: Path) -> dict[bytes, list[memoryview]]:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            log.warning("%s cannot be read, its blocks are judged again: %s", path, error)
            return {}
        found = _blocks(data)
        if found is None:
            log.warning("%s is damaged, its blocks are judged again", path)
            return {}
        if not self._read_only:
            with suppress(OSError):
                os.utime(path)
        return found

    def _path(self, key: bytes) -> Path:
        return self.folder / f"{key.hex()}{SUFFIX}"

    def _forget(self) -> None:
        for pack in self._packs():
            _delete(pack.path)

    def _prune(self) -> None:
        """Delete packs not used for long, the longest unused ones where all together are too many, and what killed
        writers left."""
        sweep_drafts(self.folder)
        size = 0
        for pack in sorted(self._packs(), key=lambda pack: pack.used, reverse=True):
            size += pack.size
            if size > MOST_BYTES or time.time() - pack.used > KEEP_DAYS * 86_400:
                with suppress(ArtifactError):
                    _delete(pack.path)

    def _packs(self) -> list[_Pack]:
        found = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            with suppress(FileNotFoundError):
                stat = path.stat()
                found.append(_Pack(path, stat.st_size, stat.st_mtime))
        return found


@dataclass(frozen=True)
class _Pack:
    path: Path
    size: int
    used: float
    """Seconds since the epoch."""


def _encoded(part: pa.RecordBatch) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, part.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(part)
    return sink.getvalue()


def _blocks(data: bytes) -> dict[bytes, list[memoryview]] | None:
    """The blocks of a pack's file; None where it is not what was written."""
    digest, _, body = data.partition(b"\n")
    if hashlib.blake2b(body, digest_size=32).hexdigest().encode() != digest:
        return None
    head, _, rest = body.partition(b"\n")
    view, at = memoryview(rest), 0
    found: dict[bytes, list[memoryview]] = {}
    for block in json.loads(head):
        parts = []
        for size in block["parts"]:
            parts.append(view[at : at + size])
            at += size
        found[bytes.fromhex(block["key"])] = parts
    return found


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error
