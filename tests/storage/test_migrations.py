"""Layouts of the cache's index: migrated in order, all or nothing, from the oldest one on."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterable
from pathlib import Path

import duckdb
import pytest
from generation_rows import answers, key, keys, numbered

from paraclip_core.errors import ArtifactError
from storage import migrations
from storage.generation_index import GenerationIndex
from storage.generations import GenerationStore
from storage.migrations import migrate

FIRST = Path(__file__).parent / "data" / "layout-2"
"""A cache as the first code that had one wrote it, with the DuckDB of the day; see the README there."""


def first_answers(numbers: Iterable[int]) -> dict[int, list[str | None]]:
    """What that cache was told."""
    both = ((n, [f"answer {n}", None if n == 5 else f"ein Hund ☃ {n}"]) for n in numbers)
    return {n: found if n % 7 else [] for n, found in both}


@pytest.fixture
def first(tmp_path: Path) -> GenerationStore:
    """That cache, in a folder of its own."""
    folder = tmp_path / "first"
    shutil.copytree(FIRST / "segments", folder / "segments")
    (folder / "generations.duckdb").write_bytes(gzip.decompress((FIRST / "generations.duckdb.gz").read_bytes()))
    return GenerationStore(folder)


def test_the_oldest_index_is_migrated(first: GenerationStore, caplog: pytest.LogCaptureFixture) -> None:
    with duckdb.connect(first.index_path) as con:
        assert migrations.applied(con) == 2
        assert con.execute("SELECT count(*), count(DISTINCT key) FROM generations").fetchall() == [(37, 34)]
    with caplog.at_level("INFO"):
        assert answers(first, range(50)) == first_answers(range(40))
    migrated = [record.message for record in caplog.records if "is migrated to layout" in record.message]
    assert len(migrated) == len(migrations.MIGRATIONS) - 2
    assert not [record.message for record in caplog.records if record.levelname != "INFO"]
    stats = first.stats()
    assert (stats.rows, stats.keys, stats.segments, stats.torn) == (43, 40, 5, 0)
    assert sorted((group.step, group.model, group.rows) for group in stats.groups) == [
        (1, "smollm2-135m@q4_1", 27),
        (2, "smollm2-135m@q4_1", 16),
    ]
    with duckdb.connect(first.index_path) as con:
        assert migrations.applied(con) == len(migrations.MIGRATIONS)
        shown = con.execute("SELECT key, segment FROM answers").fetchall()
    assert {k for k, _ in shown} == {key(n).hex() for n in range(40)}
    assert {name for _, name in shown} == set(first.segments.names())
    # It goes on as any other.
    first.append(numbered(range(40, 45)))
    assert len(answers(first, range(50))) == 45


@pytest.mark.parametrize("lost", ["all of it", "nothing"])
def test_the_oldest_segments_are_enough(first: GenerationStore, lost: str) -> None:
    if lost == "all of it":
        first.index_path.unlink()
    else:
        first.rebuild()
    assert answers(first, range(50)) == first_answers(range(40))
    with duckdb.connect(first.index_path) as con:
        assert migrations.applied(con) == len(migrations.MIGRATIONS)


def test_migrations_run_once_and_all_or_nothing() -> None:
    with duckdb.connect(":memory:") as con:
        migrate(con)
        migrate(con)
        assert con.execute("SELECT version, name FROM schema_migrations").fetchall() == [
            (1, "m001_tables"),
            (2, "m002_readable_keys"),
            (3, "m003_groups"),
            (4, "m004_places"),
            (5, "m005_slots"),
        ]

        def broken(con: duckdb.DuckDBPyConnection) -> None:
            con.execute("CREATE TABLE half (x INTEGER)")
            raise RuntimeError

        with pytest.raises(RuntimeError):
            migrate(con, (*migrations.MIGRATIONS, broken))
        assert migrations.applied(con) == 5
        assert not con.execute("SELECT * FROM duckdb_tables() WHERE table_name = 'half'").fetchall()


def test_an_index_of_a_later_release_is_left_alone(store: GenerationStore) -> None:
    store.append(numbered(range(5)))
    store.refresh()
    with duckdb.connect(store.index_path) as con:
        con.execute("INSERT INTO schema_migrations VALUES (99, 'm099_unheard_of')")
    with pytest.raises(ArtifactError, match=r"layout 99, this release knows up to 5; .* delete generations\.duckdb"):
        store.lookup(keys([1]))
    store.rebuild()
    assert len(answers(store, range(5))) == 5


def fourth(store: GenerationStore) -> None:
    """Make the index one of layout 4, whose files beside it meant something else."""
    with duckdb.connect(store.index_path) as con:
        con.execute("DROP TABLE runs")
        con.execute("CREATE TABLE runs (number INTEGER, rows BIGINT, most INTEGER)")
        con.execute("INSERT INTO runs VALUES (1, 20, 1), (2, 20, 1)")
        con.execute("DELETE FROM schema_migrations WHERE version > 4")
    folder = store.index_path.with_suffix(".index")
    for name in ("run-1.keys", "run-2.keys", "rows.u64"):
        (folder / name).write_bytes(b"\xff" * 500)


def test_files_of_layout_4_are_made_again(store: GenerationStore) -> None:
    store.append(numbered(range(20)))
    store.refresh()
    before = answers(store, range(30)), store.stats()
    fourth(store)
    assert (answers(store, range(30)), store.stats()) == before
    assert [path.name for path in store.index_path.with_suffix(".index").glob("run-*")] == ["run-1.keys"]


def test_an_older_index_that_cannot_be_written_is_not_misread(store: GenerationStore) -> None:
    store.append(numbered(range(20)))
    store.refresh()
    fourth(store)
    with (
        pytest.raises(ArtifactError, match=r"layout 4, this release reads 5; .* where its folder can be written"),
        GenerationIndex.opened(store.index_path, read_only=True),
    ):
        pass
