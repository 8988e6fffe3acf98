"""Taking over generations from another cache: two teams' caches become one, and a part of one becomes another."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paraclip_core.errors import ArtifactError, UnknownNameError
from storage.generations import GenerationStore
from storage.segments import SegmentFolder, TornSegment, digest_of, parsed
from storage.spending import note_imported

__all__ = ["Merged", "merge"]

log = logging.getLogger(__name__)

GROUP_ROWS = 500_000
KEY = pa.binary(16)


@dataclass(frozen=True)
class Merged:
    """What a cache took over from another one."""

    segments: int
    """Segments that are new here."""
    new: int
    """Rows of those."""
    known: int
    """Rows whose keys were answered here before, and which are not taken again."""
    unwanted: int
    """Rows that were not asked for."""
    damaged: int
    """Segments that cannot be read; they stay where they are."""


@dataclass
class _Segment:
    """A segment of the other cache, as far as it is wanted."""

    data: bytes
    rows: pa.Table
    whole: bool
    """Nothing of it is left out, so that its bytes can be taken as they are."""


def merge(store: GenerationStore, other: Path | str, wanted: Mapping[str, str] | None = None) -> Merged:
    """Take over what `store` does not answer yet; what it answers stays as it is, so merging twice changes nothing.

    Memory is bounded by half a million rows.

    Args:
        store: the cache that grows.
        other: folder of the other cache, which is only read.
        wanted: column → pattern (`*` and `?` stand for anything); only rows that fit all of them are taken.

    Raises:
        UnknownNameError: `other` is no cache folder.
        ArtifactError: one of the two cannot be read or written.
    """
    theirs = SegmentFolder(Path(other).absolute() / "segments")
    if not theirs.folder.is_dir():
        raise UnknownNameError(
            f"{other} is no cache folder: it has no `segments`; expected what `paraclip cache export` made, or the "
            f"folder cache of a root with generations"
        )
    if theirs.folder == store.segments.folder:
        raise ArtifactError(f"{other} is this cache itself; name the folder of another one")
    store.segments.sweep()
    ours = {digest_of(name) for name in store.segments.names()}
    # What comes out of one cache into an empty one needs no comparison.
    compare = bool(ours)
    counts: Counter[str] = Counter()
    group: list[_Segment] = []
    done: set[str] = set()
    while names := [name for name in theirs.names() if name not in done]:
        for name in names:
            if digest_of(name) in ours:
                _count_known(theirs, name, wanted or {}, counts)
            elif segment := _segment(theirs, name, wanted or {}, counts):
                group.append(segment)
            if sum(segment.rows.num_rows for segment in group) >= GROUP_ROWS:
                _take(store, group, compare, counts)
        _take(store, group, compare, counts)
        done.update(names)
        # What came meanwhile may be what was read already, joined.
        compare = True
    return Merged(*(counts[field.name] for field in fields(Merged)))


def _segment(theirs: SegmentFolder, name: str, wanted: Mapping[str, str], counts: Counter[str]) -> _Segment | None:
    try:
        data = _bytes(theirs, name)
        whole = parsed(data) if data else None
    except TornSegment as error:
        log.warning("segment %s is torn and not taken over: %s", theirs.folder / name, error)
        counts["damaged"] += 1
        return None
    if whole is None:
        return None
    rows = _fitting(whole, wanted)
    counts["unwanted"] += whole.num_rows - rows.num_rows
    return _Segment(data, rows, rows.num_rows == whole.num_rows) if rows.num_rows else None


def _take(store: GenerationStore, group: list[_Segment], compare: bool, counts: Counter[str]) -> None:
    """Publish what is new of each segment of a group, and empty the group."""
    keys = pa.chunked_array([chunk for segment in group for chunk in segment.rows.column("key").chunks], KEY)
    seen = store.lookup(keys).column("key").combine_chunks() if compare else pa.array([], KEY)
    for segment in group:
        known = pc.is_in(segment.rows.column("key"), seen)  # pyright: ignore[reportAttributeAccessIssue]
        fresh = segment.rows.filter(pc.invert(known))  # pyright: ignore[reportAttributeAccessIssue]
        whole = segment.whole and fresh.num_rows == segment.rows.num_rows
        if fresh.num_rows:
            draft = store.segments.draft_bytes(segment.data) if whole else store.segments.draft(fresh)
            with store.locked():
                # Another merge may have brought the same segment meanwhile, and noted it.
                if store.segments.publish([draft]):
                    # Last: after a kill in between it counts as paid, which only makes a spending cap come sooner.
                    note_imported(store.folder, draft.digest, fresh)
            counts["segments"] += 1
        counts["new"] += fresh.num_rows
        counts["known"] += segment.rows.num_rows - fresh.num_rows
    group.clear()


def _bytes(folder: SegmentFolder, name: str) -> bytes:
    """A segment's file; nothing where it was joined to others meanwhile."""
    try:
        return folder.read_bytes(name)
    except ArtifactError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return b""
        raise


def _count_known(folder: SegmentFolder, name: str, wanted: Mapping[str, str], counts: Counter[str]) -> None:
    """Count the rows of a segment that is here as it is there; one that cannot be read is their affair."""
    try:
        with pq.ParquetFile(folder.folder / name) as file:
            rows = file.metadata.num_rows
            fitting = _fitting(file.read(columns=[*wanted]), wanted).num_rows if wanted else rows
    except (pa.ArrowException, OSError):
        return
    counts["known"] += fitting
    counts["unwanted"] += rows - fitting


def _fitting(table: pa.Table, wanted: Mapping[str, str]) -> pa.Table:
    for column, pattern in wanted.items():
        values = table.column(column) if column in table.column_names else pa.chunked_array([pa.nulls(table.num_rows)])
        fitting = [v for v in values.unique().to_pylist() if v is not None and fnmatchcase(str(v), pattern)]
        table = table.filter(pc.is_in(values, pa.array(fitting, values.type)))  # pyright: ignore[reportAttributeAccessIssue]
    return table
