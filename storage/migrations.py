"""Ordered changes to the layout of the cache's DuckDB file.

Each is applied once, in order, and noted in the table ``schema_migrations`` in the same transaction. Never change one
that was released: add the next. A change that needs what only segments hold may empty ``segments`` and
``generations``: they are filled again from the segment files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import duckdb

from paraclip_core.errors import ArtifactError

__all__ = ["MIGRATIONS", "Migration", "applied", "migrate", "need_newest"]

log = logging.getLogger(__name__)

Migration = Callable[[duckdb.DuckDBPyConnection], object]


def m001_tables(con: duckdb.DuckDBPyConnection) -> None:
    """The segments that are indexed, and their generations. No primary key: it makes every insert slower."""
    con.execute("CREATE TABLE segments (id INTEGER, name VARCHAR, rows BIGINT)")
    con.execute(
        "CREATE TABLE generations (key UHUGEINT, segment INTEGER, step TINYINT, attempt SMALLINT, "
        "model VARCHAR, prompt VARCHAR, completions VARCHAR[])"
    )


def m002_readable_keys(con: duckdb.DuckDBPyConnection) -> None:
    """A view for people: the key as the hex that artifacts show, and the segment's name."""
    con.execute(
        "CREATE VIEW answers AS SELECT printf('%032x', g.key) AS key, g.step, g.attempt, g.model, g.prompt, "
        "g.completions, s.name AS segment FROM generations g JOIN segments s ON s.id = g.segment"
    )


def m003_groups(con: duckdb.DuckDBPyConnection) -> None:
    """Step, model and prompt of a generation become the number of a group, and answers are not compressed.

    Both were most of the time of an insert; a search for good compression took three times as long as writing, for an
    index that can be made again at any time.
    """
    con.execute("DROP VIEW answers")
    con.execute("DROP TABLE generations")
    con.execute("DELETE FROM segments")
    con.execute("CREATE TABLE groups (id INTEGER, step TINYINT, model VARCHAR, prompt VARCHAR)")
    con.execute(
        "CREATE TABLE generations (key UHUGEINT, segment INTEGER, group_id INTEGER, attempt SMALLINT, "
        "completions VARCHAR[] USING COMPRESSION uncompressed)"
    )
    con.execute(
        "CREATE VIEW answers AS SELECT printf('%032x', g.key) AS key, p.step, g.attempt, p.model, p.prompt, "
        "g.completions, s.name AS segment FROM generations g JOIN segments s ON s.id = g.segment "
        "JOIN groups p ON p.id = g.group_id"
    )


def m004_places(con: duckdb.DuckDBPyConnection) -> None:
    """Rows get numbers; their keys and answers lie under these in files beside, which are found without reading all.

    What a look-up cost grew with the rows that were there, as DuckDB reads a whole column to find scattered rows.
    """
    con.execute("DROP VIEW answers")
    con.execute("DROP TABLE generations")
    con.execute("DROP TABLE segments")
    con.execute("CREATE TABLE segments (id INTEGER, name VARCHAR, rows BIGINT, place BIGINT)")
    con.execute(
        "CREATE TABLE generations (key UHUGEINT, segment INTEGER, group_id INTEGER, attempt SMALLINT, place BIGINT)"
    )
    con.execute("CREATE TABLE runs (number INTEGER, rows BIGINT, most INTEGER)")
    con.execute("CREATE TABLE filled (rows BIGINT, strings BIGINT, bytes BIGINT)")
    con.execute("INSERT INTO filled VALUES (0, 0, 0)")
    con.execute(
        "CREATE VIEW answers AS SELECT printf('%032x', g.key) AS key, p.step, g.attempt, p.model, p.prompt, "
        "s.name AS segment, g.place - s.place AS row FROM generations g JOIN segments s ON s.id = g.segment "
        "JOIN groups p ON p.id = g.group_id"
    )


def m005_slots(con: duckdb.DuckDBPyConnection) -> None:
    """A run's entry has the first 32 bits of a key and lies where these say; whole keys lie with the rows.

    A look-up costs what memory it touches: runs had 21 bytes a row, in which a key was searched for from the middle.
    """
    for table in ("generations", "segments"):
        con.execute(f"DELETE FROM {table}")  # noqa: S608 (our own names)
    con.execute("DROP TABLE runs")
    con.execute("CREATE TABLE runs (number INTEGER, rows BIGINT, slots BIGINT, reach BIGINT)")
    con.execute("UPDATE filled SET rows = 0, strings = 0, bytes = 0")


MIGRATIONS: tuple[Migration, ...] = (m001_tables, m002_readable_keys, m003_groups, m004_places, m005_slots)


def applied(con: duckdb.DuckDBPyConnection) -> int:
    """How many migrations the file has seen; 0 for a new one."""
    try:
        return con.execute("SELECT coalesce(max(version), 0) FROM schema_migrations").fetchall()[0][0]
    except duckdb.CatalogException:
        return 0


def migrate(con: duckdb.DuckDBPyConnection, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring the file to the newest layout.

    Raises:
        ArtifactError: the file was written by a later release.
    """
    version = applied(con)
    if version > len(migrations):
        raise ArtifactError(
            f"the cache's index has layout {version}, this release knows up to {len(migrations)}; install the "
            "later paraclip, or delete generations.duckdb to have it rebuilt from its segments"
        )
    for number, migration in enumerate(migrations[version:], start=version + 1):
        con.execute("BEGIN")
        try:
            con.execute("CREATE TABLE IF NOT EXISTS schema_migrations (version INTEGER, name VARCHAR)")
            migration(con)
            con.execute("INSERT INTO schema_migrations VALUES (?, ?)", [number, getattr(migration, "__name__", "")])
        except BaseException:
            con.execute("ROLLBACK")
            raise
        con.execute("COMMIT")
        if version:
            log.info("the cache's index is migrated to layout %s", number)


def need_newest(con: duckdb.DuckDBPyConnection) -> None:
    """See that a file that cannot be written has the newest layout.

    Raises:
        ArtifactError: it has not.
    """
    if (version := applied(con)) != len(MIGRATIONS):
        raise ArtifactError(
            f"the cache's index has layout {version}, this release reads {len(MIGRATIONS)}; look something up in it "
            "once where its folder can be written"
        )
