"""Many small segments become few big ones, while others go on appending and whatever is killed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from paraclip_core.errors import ArtifactError
from storage.generations import GenerationStore
from storage.history import History
from storage.locks import lock
from storage.segments import SegmentDraft, TornSegment, digest_of, parsed
from storage.spending import note_joined

__all__ = ["Compacted", "compact"]

log = logging.getLogger(__name__)

TARGET_ROWS = 500_000
TARGET_BYTES = 128 << 20


@dataclass(frozen=True)
class Compacted:
    """What a compaction did."""

    before: int
    """Segments before."""
    after: int
    """Segments after, those that were appended meanwhile included."""
    rows: int
    """Rows that were written into bigger segments."""
    torn: int
    """Segments that were found damaged and set aside."""


def compact(store: GenerationStore, target_rows: int = TARGET_ROWS) -> Compacted:
    """Join neighbouring small segments; no row is lost, doubled or changed, and the first answer stays the first.

    A segment takes the place of others by one renaming, with the lock held; everything slow happens without it, so
    appending goes on. A segment that holds half of the target is big enough and left alone.

    Args:
        store: the cache.
        target_rows: rows of a big segment, at most.

    Raises:
        ArtifactError: the cache cannot be written.
    """
    if store.mirror is not None:
        raise ArtifactError(
            f"{store.folder} is shared through an object store, where segments stay as they are; export it to a folder"
        )
    before, rows, torn = len(store.segments.names()), 0, 0
    if not before:
        return Compacted(0, 0, 0, 0)
    # One compaction at a time; appending and looking up need another lock.
    with lock(store.folder / "compaction.lock"):
        # What an earlier one left half done, and what is torn, is settled first.
        store.refresh()
        store.segments.sweep()
        while True:
            try:
                for group in _groups(store, target_rows):
                    count, draft = _joined(store, group)
                    rows += count if _replaced(store, group, draft) else 0
                    store.refresh()
                break
            except _Torn as error:
                with store.locked():
                    store.segments.set_aside(error.name, error)
                torn += 1
    return Compacted(before, len(store.segments.names()), rows, torn)


class _Torn(Exception):
    """A segment of a group is torn."""

    def __init__(self, name: str, why: object) -> None:
        super().__init__(str(why))
        self.name = name


def _groups(store: GenerationStore, target_rows: int) -> Iterator[list[str]]:
    """Neighbouring segments that make a big one together."""
    group: list[str] = []
    rows = size = 0
    layout: pa.Schema | None = None
    for name in store.segments.names():
        count, bytes_, schema = _footer(store, name)
        big = count * 2 > target_rows or bytes_ * 2 > TARGET_BYTES
        full = rows + count > target_rows or size + bytes_ > TARGET_BYTES
        if big or full or schema != layout:
            if len(group) > 1:
                yield group
            group, rows, size = [], 0, 0
        if not big:
            group.append(name)
            rows, size, layout = rows + count, size + bytes_, schema
    if len(group) > 1:
        yield group


def _footer(store: GenerationStore, name: str) -> tuple[int, int, pa.Schema]:
    """Rows, bytes and layout of a segment, without reading it."""
    try:
        with pq.ParquetFile(store.segments.folder / name) as file:
            return file.metadata.num_rows, store.segments.size(name), file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise _Torn(name, error) from error


def _joined(store: GenerationStore, group: list[str]) -> tuple[int, SegmentDraft]:
    tables = []
    for name in group:
        try:
            tables.append(parsed(store.segments.read_bytes(name)))
        except TornSegment as error:
            raise _Torn(name, error) from error
    whole = pa.concat_tables(tables)
    return whole.num_rows, store.segments.draft(whole)


def _replaced(store: GenerationStore, group: list[str], draft: SegmentDraft) -> bool:
    with store.locked():
        names = store.segments.names()
        if set(group).issubset(names):
            # Judged blocks were judged from the same answers as before.
            history = History(store.folder / "judged" / "history.json")
            held = history.holds(names)
            note_joined(store.folder, map(digest_of, names), map(digest_of, group), draft.digest)
            store.segments.replace(group, draft)
            if held:
                with suppress(ArtifactError):
                    history.write(store.segments.names())
            return True
    log.info("segments changed while they were joined; they stay as they are")
    with suppress(OSError):
        draft.path.unlink()
    return False
