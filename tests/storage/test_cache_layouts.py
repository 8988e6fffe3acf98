"""The cache's DuckDB file takes over caches of earlier releases, whatever is killed, and refuses later ones."""

from __future__ import annotations

import gzip
import shutil
import signal
import tarfile
from collections.abc import Iterable
from pathlib import Path

import duckdb
import pytest
from generation_rows import answers, child, judged, keys, numbered, verdicts

from paraclip_core.errors import ArtifactError
from storage.cache_tools import cache_stats, paid_tokens, verify_cache
from storage.generations import LAYOUT, GenerationStore

FIRST = Path(__file__).parent / "data" / "layout-2"
FIFTH = Path(__file__).parents[1] / "data" / "cache-layout-5" / "cache.tar.gz"
"""Caches as earlier code wrote them; see the READMEs there."""


def earlier_answers(numbers: Iterable[int]) -> dict[int, list[str | None]]:
    """What those caches were told."""
    both = ((n, [f"answer {n}", None if n == 5 else f"ein Hund ☃ {n}"]) for n in numbers)
    return {n: texts if n % 7 else [] for n, texts in both}


def second_layout(folder: Path) -> GenerationStore:
    """The oldest cache there is, in a folder of its own."""
    shutil.copytree(FIRST / "segments", folder / "segments")
    (folder / "generations.duckdb").write_bytes(gzip.decompress((FIRST / "generations.duckdb.gz").read_bytes()))
    return GenerationStore(folder)


def fifth_layout(folder: Path) -> GenerationStore:
    """The last cache that had an index of its own beside DuckDB's."""
    with tarfile.open(FIFTH) as archive:
        archive.extractall(folder, filter="data")
    (folder / "cache" / "judged" / ".killed.tmp").write_bytes(b"a draft that a kill left behind")
    return GenerationStore(folder / "cache")


EARLIER = {"2": second_layout, "5": fifth_layout}


def layout_of(store: GenerationStore) -> int:
    with duckdb.connect(store.file.path, read_only=True) as con:
        return con.execute("SELECT max(version) FROM schema_migrations").fetchall()[0][0]


def assert_taken_over(store: GenerationStore, names: list[str]) -> None:
    assert answers(store, range(50)) == earlier_answers(range(40))
    stats = cache_stats(store)
    assert (stats.rows, stats.keys, stats.segments, stats.torn, stats.verdicts) == (43, 40, len(names), 0, 0)
    assert store.parts.names() == names
    assert layout_of(store) == LAYOUT
    left = {path.name for path in store.folder.iterdir()} - {"imported.json", "generations.lock"}
    assert left == {"segments", "generations.duckdb"}
    assert verify_cache(store).sound
    # It goes on as any other.
    store.append(numbered(range(40, 45)))
    store.append_verdicts(verdicts(range(45)))
    assert (len(answers(store, range(50))), len(judged(store))) == (45, 45)


@pytest.mark.parametrize("layout", EARLIER)
def test_an_earlier_cache_is_taken_over(layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = EARLIER[layout](tmp_path)
    assert layout_of(store) == int(layout)
    names, paid = store.parts.names(), paid_tokens(store.folder, "file", "other")
    with caplog.at_level("INFO"):
        store.refresh()
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert f"has layout {layout} and is made again from its parts" in caplog.text
    assert_taken_over(store, names)
    assert paid == paid_tokens(store.folder, "file", "other") == (0, 0)


@pytest.mark.parametrize("lost", ["generations.duckdb", "generations.index"])
def test_the_parts_of_an_earlier_cache_are_enough(lost: str, tmp_path: Path) -> None:
    store = fifth_layout(tmp_path)
    (shutil.rmtree if lost == "generations.index" else Path.unlink)(store.folder / lost)
    assert_taken_over(store, store.parts.names())


KILL_AT = """
import pathlib, shutil
point, after = sys.argv[2], dying_after(int(sys.argv[3]))
if point == "folders deleted":
    shutil.rmtree = after(shutil.rmtree)
elif point == "a file of a folder deleted":
    os.unlink = after(os.unlink)
elif point == "files deleted":
    pathlib.Path.unlink = after(pathlib.Path.unlink)
elif point == "tables made":
    generations._clear = after(generations._clear)
elif point == "layout noted":
    CacheFile._create = after(CacheFile._create)
elif point == "group inserted":
    generations.GROUP_ROWS = 10
    generations._insert = after(generations._insert)
elif point == "table filled":
    generations._follow = after(generations._follow)
GenerationStore(sys.argv[1]).refresh()
"""


@pytest.mark.parametrize(
    ("point", "deaths"),
    [
        *(("folders deleted", n) for n in range(2)),
        *(("a file of a folder deleted", n) for n in range(0, 8, 3)),
        *(("files deleted", n) for n in range(2)),
        *(("tables made", n) for n in range(2)),
        ("layout noted", 0),
        *(("group inserted", n) for n in range(4)),
        *(("table filled", n) for n in range(2)),
    ],
)
def test_a_kill_while_a_cache_is_taken_over_costs_nothing(point: str, deaths: int, tmp_path: Path) -> None:
    store = fifth_layout(tmp_path)
    names = store.parts.names()
    with child(KILL_AT, store.folder, point, deaths) as process:
        assert process.wait(120) == -signal.SIGKILL
    assert_taken_over(store, names)


def test_the_file_of_a_later_release_is_left_alone(store: GenerationStore) -> None:
    store.append(numbered(range(5)))
    store.refresh()
    with duckdb.connect(store.file.path) as con:
        con.execute("INSERT INTO schema_migrations VALUES (99, 'unheard of')")
    with pytest.raises(ArtifactError, match=r"layout 99, this release knows up to 6; .* delete generations\.duckdb"):
        store.lookup(keys([1]))
    assert layout_of(store) == 99
    store.rebuild()
    assert len(answers(store, range(5))) == 5


def test_an_earlier_file_that_cannot_be_written_is_not_misread(tmp_path: Path) -> None:
    store = fifth_layout(tmp_path)
    with pytest.raises(ArtifactError, match=r"layout 5, this release reads 6; .* where its folder can be written"):
        store.file.check()
    store.file.path.write_bytes(b"no database")
    with pytest.raises(ArtifactError, match="cannot be read"):
        store.file.check()
    store.file.path.unlink()
    with pytest.raises(ArtifactError, match="is read-only and has no index"):
        store.file.check()
