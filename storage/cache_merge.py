"""Parts that move: those of another cache come in, and many small ones become few big ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from paraclip.storage.duckdb_file import connect
from paraclip.storage.generations import GenerationStore
from paraclip.storage.locks import lock
from paraclip.storage.parts import IMPORTED, PartFolder, TornPart, order_of
from paraclip_core.errors import ArtifactError, UnknownNameError

log = logging.getLogger(__name__)

TARGET_ROWS = 500_000
TARGET_BYTES = 128 << 20
FOREIGN = "CREATE OR REPLACE TABLE foreign_rows (part VARCHAR, row BIGINT, key BLOB, wanted BOOLEAN)"
COMPARE = """
    CREATE OR REPLACE TABLE compared AS SELECT f.part, f.row, f.wanted, g.key IS NOT NULL AS answered
    FROM foreign_rows AS f LEFT JOIN cache.generations AS g ON g.key = f.key
"""
COUNT = """
    SELECT part, count(*) FILTER (wanted AND NOT answered), count(*) FILTER (wanted AND answered),
        count(*) FILTER (NOT wanted)
    FROM compared GROUP BY part
"""
NEW_ROWS = "SELECT row FROM compared WHERE part = ? AND wanted AND NOT answered ORDER BY row"


@dataclass
class Merged:
    """What a cache took over from another one."""

    segments: int = 0
    """Parts that are new here."""
    new: int = 0
    """Rows of those."""
    known: int = 0
    """Rows whose keys were answered here before, and which are not taken again."""
    unwanted: int = 0
    """Rows that were not asked for."""
    damaged: int = 0
    """Parts that cannot be read; they stay where they are."""


def merge(store: GenerationStore, other: Path | str, patterns: Mapping[str, str] | None = None) -> Merged:
    """Take over what `store` does not answer yet; what it answers stays as it is, so merging twice changes nothing.

    Verdicts are not taken over: they are made again from the generations.

    Args:
        store: the cache that grows.
        other: folder of the other cache, which is only read.
        patterns: column → pattern (`*` and `?` stand for anything); only rows that fit all of them are taken.
    """
    theirs = _foreign_parts(store, Path(other).absolute())
    store.parts.sweep()
    merged, done = Merged(), set()
    with connect(store.file.path) as con:
        # Parts that are joined while they are read come once more, under another name.
        while names := [name for name in theirs.names() if name not in done]:
            con.execute(FOREIGN)
            for name in names:
                merged.damaged += not _list_rows(con, theirs, name, patterns or {})
            with store.attached(con):
                con.execute(COMPARE)
            # A part's number counts where it comes from, too.
            for name, new, known, unwanted in sorted(con.execute(COUNT).fetchall(), key=lambda row: order_of(row[0])):
                if new and not _take(con, store, theirs, name):
                    continue
                merged.segments += new > 0
                merged.new += new
                merged.known += known
                merged.unwanted += unwanted
            done.update(names)
    return merged


def _foreign_parts(store: GenerationStore, folder: Path) -> PartFolder:
    parts = PartFolder(folder / "segments", store.parts.schema)
    if not parts.folder.is_dir():
        raise UnknownNameError(
            f"{folder} is no cache folder: it has no `segments`; expected what `paraclip cache export` made, or the "
            f"folder cache of a root with generations"
        )
    if parts.folder == store.parts.folder:
        raise ArtifactError(f"{folder} is this cache itself; name the folder of another one")
    return parts


def _list_rows(con: duckdb.DuckDBPyConnection, theirs: PartFolder, name: str, patterns: Mapping[str, str]) -> bool:
    """List a part's rows in the table `foreign_rows`; False where it is damaged."""
    try:
        table = theirs.read(name)
    except TornPart as error:
        log.warning("part %s is torn and not taken over: %s", theirs.folder / name, error)
        return False
    except ArtifactError:
        if (theirs.folder / name).exists():
            raise
        return True
    # A column that its writer did not keep fits no pattern.
    fits = [f"{column}::VARCHAR GLOB ${column}" if column in table.column_names else "false" for column in patterns]
    values = {column: pattern for column, pattern in patterns.items() if column in table.column_names}
    con.register("part", table.append_column("row", pa.array(np.arange(len(table)))))
    query = "INSERT INTO foreign_rows SELECT $name, row, key, {fits} FROM part"
    con.execute(query.format(fits=" AND ".join(["true", *fits])), {"name": name, **values})
    con.unregister("part")
    return True


def _take(con: duckdb.DuckDBPyConnection, store: GenerationStore, theirs: PartFolder, name: str) -> bool:
    """Publish the new rows of a part; False where it was joined to others meanwhile."""
    try:
        rows = theirs.read(name)
    except (TornPart, ArtifactError):
        if (theirs.folder / name).exists():
            raise
        return False
    rows = rows.take(con.sql(NEW_ROWS, params=[name]).to_arrow_table().column("row"))
    draft = store.parts.draft(rows.replace_schema_metadata({**(rows.schema.metadata or {}), **IMPORTED}))
    with store.locked():
        store.parts.publish([draft])
    return True


# Compacting


@dataclass(frozen=True)
class Compacted:
    """What a compaction did, with the parts of generations and of verdicts."""

    before: int
    """Parts before."""
    after: int
    """Parts after, those that were appended meanwhile included."""
    rows: int
    """Rows that were written into bigger parts."""
    torn: int
    """Parts that were found damaged and set aside."""


def compact(store: GenerationStore, target_rows: int = TARGET_ROWS) -> Compacted:
    """Join neighbouring small parts; no row is lost, doubled or changed, and the first answer stays the first.

    A part takes the place of others by one renaming, with the lock held; everything slow happens without it, so
    appending goes on. A part that holds half of the target is big enough and left alone.

    Args:
        store: the cache.
        target_rows: rows of a big part, at most.
    """
    if store.mirror is not None:
        raise ArtifactError(
            f"{store.folder} is shared through an object store, where segments stay as they are; export it to a folder"
        )
    if not store.exists():
        return Compacted(0, 0, 0, 0)
    folders = (store.parts, store.verdict_parts)
    before, rows, torn = sum(len(folder.names()) for folder in folders), 0, 0
    # One compaction at a time; appending and looking up need another lock.
    with lock(store.folder / "compaction.lock"):
        # What an earlier one left half done, and what is torn, is settled first.
        store.refresh()
        for folder in folders:
            moved, damaged = _compact(store, folder, target_rows)
            rows, torn = rows + moved, torn + damaged
    return Compacted(before, sum(len(folder.names()) for folder in folders), rows, torn)


def _compact(store: GenerationStore, folder: PartFolder, target_rows: int) -> tuple[int, int]:
    """Join the parts of one folder; rows that moved and parts that were torn."""
    rows = torn = 0
    while True:
        try:
            for group in _groups(folder, target_rows):
                rows += _join(store, folder, group)
            return rows, torn
        except TornPart as error:
            with store.locked():
                folder.set_aside(error)
            torn += 1


def _groups(folder: PartFolder, target_rows: int) -> Iterator[list[str]]:
    """Neighbouring parts that make a big one together."""
    group: list[str] = []
    rows = size = 0
    layout = pa.schema([])
    for name in folder.names():
        part = folder.footer(name)
        big = part.rows * 2 > target_rows or part.bytes * 2 > TARGET_BYTES
        full = rows + part.rows > target_rows or size + part.bytes > TARGET_BYTES
        if big or full or not part.schema.equals(layout, check_metadata=True):
            if len(group) > 1:
                yield group
            group, rows, size = [], 0, 0
        if not big:
            group.append(name)
            rows, size, layout = rows + part.rows, size + part.bytes, part.schema
    if len(group) > 1:
        yield group


def _join(store: GenerationStore, folder: PartFolder, group: Sequence[str]) -> int:
    """Let one part take the place of a group, unless that changed meanwhile; the rows that moved."""
    whole = pa.concat_tables([folder.read(name) for name in group])
    draft = folder.draft(whole)
    with store.locked():
        if replaced := set(group).issubset(folder.names()):
            folder.replace(group, draft)
    if not replaced:
        log.info("parts changed while they were joined; they stay as they are")
        with suppress(OSError):
            draft.path.unlink()
        return 0
    store.refresh()
    return whole.num_rows
