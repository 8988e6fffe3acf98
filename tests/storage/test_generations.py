"""The generation cache: found again in bulk, by many processes, after kills, damage and upgrades."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from generation_rows import answers, child, flip, judged, key, keys, numbered, rows, verdicts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import AT_ONCE

from paraclip_core import tables
from paraclip_core.errors import ArtifactError, LockedError
from storage import duckdb_file, generations
from storage.cache_merge import compact
from storage.cache_tools import cache_stats
from storage.generations import GenerationStore


def test_an_empty_cache_knows_nothing_and_makes_no_folder(store: GenerationStore) -> None:
    found = store.lookup(keys([1]))
    assert (found.num_rows, found.column_names) == (0, ["key", "completions"])
    assert cache_stats(store).rows == cache_stats(store).segments == 0
    assert not store.folder.exists()
    store.close()


def test_answers_come_once(store: GenerationStore) -> None:
    store.append(numbered(range(10)))
    found = store.lookup(keys([7, 99, 3, 7, 3, 0]))
    assert sorted(found.column("key").to_pylist()) == sorted([key(7), key(3), key(0)])
    assert answers(store, [7, 99, 3, 7, 3, 0]) == {n: [f"answer {n}"] for n in (7, 3, 0)}
    assert found.schema.field("key").type == pa.binary(16)


def test_slices_chunks_and_nothing_can_be_asked(store: GenerationStore) -> None:
    store.append(numbered(range(10)).slice(2, 5))
    whole = keys(range(10))
    chunked = pa.chunked_array([whole.slice(1, 3), whole.slice(6, 3)])
    assert set(store.lookup(chunked).column("key").to_pylist()) == {key(2), key(3), key(6)}
    assert store.lookup(whole.slice(4, 4)).num_rows == 3
    assert store.lookup(whole.slice(0, 0)).num_rows == 0
    assert store.lookup(pa.chunked_array([], pa.binary(16))).num_rows == 0


@pytest.mark.parametrize("rebuild", [False, True])
def test_the_first_answer_counts(store: GenerationStore, rebuild: bool) -> None:
    store.append(numbered([1, 2], "first"))
    store.append(rows([(key(2), ["second"]), (key(3), ["third"]), (key(3), ["fourth"])]))
    if rebuild:
        store.rebuild()
    assert answers(store, [1, 2, 3]) == {1: ["first 1"], 2: ["first 2"], 3: ["third"]}
    stats = cache_stats(store)
    assert (stats.rows, stats.keys, stats.segments, stats.torn) == (5, 3, 2, 0)


def test_the_first_answer_counts_whatever_order_the_index_saw(store: GenerationStore) -> None:
    store.append(numbered([1], "first"))
    (name,) = store.parts.names()
    hidden = store.parts.folder / f".{name}"
    (store.parts.folder / name).rename(hidden)
    store.append(numbered([1], "second"))
    later = store.parts.names()[0]
    (store.parts.folder / later).rename(store.parts.folder / later.replace("00000001", "00000002"))
    assert answers(store, [1]) == {1: ["second 1"]}
    hidden.rename(store.parts.folder / name)
    assert answers(store, [1]) == {1: ["first 1"]}
    assert (cache_stats(store).rows, cache_stats(store).keys) == (2, 1)


def test_of_two_parts_with_one_number_the_lower_name_counts(store: GenerationStore) -> None:
    drafts = sorted(
        (store.verdict_parts.draft(verdicts([1, 2], text)) for text in "abc"), key=lambda draft: draft.digest
    )
    first = pq.read_table(drafts[0].path)
    for number in (2, 0, 1):
        draft = drafts[number]
        draft.path.rename(store.verdict_parts.folder / f"00000001-{draft.digest}.parquet")
        store.refresh()
    assert judged(store) == first.sort_by("generation").to_pylist()


def test_the_same_table_twice_is_one_segment(store: GenerationStore) -> None:
    store.append(numbered(range(5)))
    store.append(numbered(range(5)))
    assert (cache_stats(store).segments, cache_stats(store).rows) == (1, 5)
    assert not list(store.parts.folder.glob(".*"))


def test_raw_completions_are_kept_to_the_byte(store: GenerationStore) -> None:
    hostile: list[str | None] = ["", None, "a\0b", "'; DROP TABLE generations; --", "\u202e\U0001f600", "x" * 100_000]
    store.append(rows([(key(1), hostile), (key(2), [])]))
    assert answers(store, [1, 2]) == {1: hostile, 2: []}
    store.rebuild()
    assert answers(store, [1, 2]) == {1: hostile, 2: []}


def test_segments_keep_every_column(store: GenerationStore) -> None:
    store.append(numbered(range(3)))
    (name,) = store.parts.names()
    assert pq.read_table(store.parts.folder / name).equals(numbered(range(3)))


def test_verdicts_come_once_and_whole(store: GenerationStore) -> None:
    store.append_verdicts(pa.concat_tables([verdicts(range(10)), verdicts(range(5), "second")]))
    store.append_verdicts(verdicts(range(8, 12), "third"))
    store.append_verdicts(verdicts(range(3), gates=1))
    expected = [*verdicts(range(10)).to_pylist(), *verdicts([10, 11], "third").to_pylist()]
    expected += verdicts(range(3), gates=1).to_pylist()
    for _ in range(2):
        assert judged(store) == sorted(expected, key=lambda row: (row["generation"], row["gates"]))
        store.rebuild()
    assert cache_stats(store).verdicts == 15
    with pytest.raises(ArtifactError, match="'gates' is string instead of fixed_size_binary"):
        store.append_verdicts(verdicts([1]).set_column(2, "gates", pa.array(["a"])))


def test_the_schemas_are_those_of_the_tables() -> None:
    assert generations.VERDICTS.schema == tables.VERDICTS
    assert all(field == tables.GENERATIONS.field(field.name) for field in generations.GENERATIONS.schema)


def test_tables_are_joined_with_those_of_a_caller(store: GenerationStore) -> None:
    missing = "SELECT n FROM requests ANTI JOIN cache.generations USING (key) ORDER BY n"
    with duckdb.connect() as con:
        con.register("asked", pa.table({"n": [1, 2, 3], "key": keys([1, 2, 3])}))
        con.execute("CREATE TABLE requests AS FROM asked")
        with store.attached(con):
            assert con.execute(missing).fetchall() == [(1,), (2,), (3,)]
            assert con.execute("SELECT * FROM cache.verdicts").fetchall() == []
        assert not store.folder.exists()
        store.append(numbered([2]))
        store.append_verdicts(verdicts([2]))
        for _ in range(2):
            with store.attached(con):
                con.execute(f"CREATE OR REPLACE TABLE missing AS {missing}")
                assert con.execute("SELECT count(*) FROM cache.verdicts").fetchall() == [(1,)]
        assert con.execute("FROM missing").fetchall() == [(1,), (3,)]
        with store.attached(con), pytest.raises(duckdb.InvalidInputException, match="read-only"):
            con.execute("DELETE FROM cache.generations")


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, duckdb.FatalException])
def test_what_fails_in_a_block_leaves_everything_usable(store: GenerationStore, failure: type[BaseException]) -> None:
    store.append(numbered([1]))
    with duckdb.connect() as con:
        with pytest.raises(failure, match="on the way"), store.attached(con):
            con.execute("BEGIN")
            con.execute("FROM cache.generations")
            raise failure("on the way")
        con.execute("ROLLBACK")
        with pytest.raises(duckdb.BinderException), store.attached(con):
            con.execute("BEGIN")
            con.execute("SELECT nonsense")
        with store.attached(con):
            assert con.execute("SELECT count(*) FROM cache.generations").fetchall() == [(1,)]
    assert answers(store, [1]) == {1: ["answer 1"]}


def test_statistics_by_step_model_and_prompt(store: GenerationStore) -> None:
    store.append(numbered(range(5)))
    store.append(numbered(range(3), "again"))
    store.append(numbered(range(10, 12), step=2, model="n"))
    groups = [(g.step, g.model, g.prompt, g.rows, g.keys) for g in cache_stats(store).groups]
    assert groups == [(1, "m", "paper", 8, 5), (2, "n", "paper", 2, 2)]
    assert cache_stats(store).bytes == sum(p.stat().st_size for p in store.parts.folder.iterdir())


@pytest.mark.parametrize("column", ["key", "completions", "step", "model"])
def test_a_table_without_a_column_is_refused_by_name(store: GenerationStore, column: str) -> None:
    with pytest.raises(ArtifactError, match=f"lacks the column '{column}'"):
        store.append(numbered([1]).drop_columns([column]))
    assert not store.folder.exists()


def test_wrong_columns_and_keys_are_refused(store: GenerationStore) -> None:
    table = numbered([1])
    with pytest.raises(ArtifactError, match="'step' is int64 instead of int8"):
        store.append(table.set_column(1, "step", pa.array([1])))
    with pytest.raises(ArtifactError, match="'key' has 1 nulls"):
        store.append(table.set_column(0, pa.field("key", pa.binary(16)), pa.array([None], pa.binary(16))))
    with pytest.raises(ArtifactError, match=r"expected binary\(16\)"):
        store.lookup(pa.array(["a"]))
    with pytest.raises(ArtifactError, match="1 nulls"):
        store.lookup(pa.array([None], pa.binary(16)))


# Kills


def test_a_power_cut_takes_nothing_that_was_appended(store: GenerationStore, on_disk: Callable[[Path], bool]) -> None:
    store.append(numbered(range(10)))
    segments = store.parts.folder
    assert all(map(on_disk, (segments, *(segments / name for name in store.parts.names()))))
    store.append_verdicts(verdicts(range(10)))
    assert all(map(on_disk, (store.verdict_parts.folder, *store.verdict_parts.folder.iterdir())))


APPEND_FOREVER = """
store = GenerationStore(sys.argv[1])
for chunk in range(10_000):
    store.append(numbered(range(int(sys.argv[2]) + 10 * chunk, int(sys.argv[2]) + 10 * chunk + 10)))
    if chunk % 3 == 2:
        store.refresh()
    print(chunk, flush=True)
"""


def test_what_was_appended_survives_kills_at_any_time(store: GenerationStore) -> None:
    chance, kept = random.Random(0), 0
    for turn in range(6):
        base = 1_000_000 * turn
        with child(APPEND_FOREVER, store.folder, base) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.3 * chance.random())
            process.send_signal(signal.SIGKILL)
            chunks = 1 + len(process.stdout.read().split())
        found = answers(store, range(base, base + 10 * chunks + 10))
        assert set(range(base, base + 10 * chunks)) <= set(found)
        kept += len(found)
    assert cache_stats(store).rows == cache_stats(store).keys == kept
    assert cache_stats(store).torn == 0


KILL_AT = """
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
point = sys.argv[2]
insert = generations._insert
def insert_then_die(*arguments):
    insert(*arguments)
    die()
if point == "before the part has its name":
    PartFolder.publish = die
elif point == "before the file is open":
    CacheFile.catch_up = die
elif point == "before the rows are inserted":
    generations._insert = die
elif point == "inside the transaction":
    # The rows are inserted, their part is not noted yet.
    generations.NOTE = "SELECT die()"
    connect = duckdb.connect
    def with_death(*arguments, **options):
        con = connect(*arguments, **options)
        con.create_function("die", lambda: die(), [], "INTEGER")
        return con
    duckdb.connect = with_death
elif point == "after the rows are inserted":
    generations._insert = insert_then_die
store = GenerationStore(sys.argv[1])
store.append_verdicts(verdicts(range(5, 10)))
store.append(numbered(range(5, 10)))
store.refresh()
"""


@pytest.mark.parametrize(
    "point",
    [
        "before the part has its name",
        "before the file is open",
        "before the rows are inserted",
        "inside the transaction",
        "after the rows are inserted",
    ],
)
def test_killed_between_part_and_table(store: GenerationStore, point: str) -> None:
    store.append(numbered(range(5)))
    store.append_verdicts(verdicts(range(5)))
    store.refresh()
    with child(KILL_AT, store.folder, point) as process:
        assert process.wait(120) == -signal.SIGKILL
    count = 5 if point == "before the part has its name" else 10
    started = time.monotonic()
    assert list(answers(store, range(10))) == list(range(count))
    assert time.monotonic() - started < AT_ONCE
    assert cache_stats(store).rows == count
    assert len(judged(store)) == count


def test_drafts_of_killed_writers_are_swept_after_a_day(store: GenerationStore) -> None:
    store.append(numbered([1]))
    old, new = (store.parts.folder / f".{name}.tmp" for name in ("old", "new"))
    old.write_bytes(b"")
    new.write_bytes(b"")
    os.utime(old, (0, time.time() - 90_000))
    store.close()
    assert (old.exists(), new.exists()) == (False, True)


# Many at once


APPEND = """
store = GenerationStore(sys.argv[1])
base = int(sys.argv[2])
for chunk in range(15):
    numbers = range(base + 20 * chunk, base + 20 * chunk + 20)
    store.append(numbered(numbers))
    store.append_verdicts(verdicts(numbers))
    assert list(answers(store, numbers)) == list(numbers)
"""

LOOK_UP = """
store, seen = GenerationStore(sys.argv[1]), set()
while len(seen) < 1050:
    found = answers(store, range(3000))
    assert all(text == [f"answer {n}"] for n, text in found.items())
    assert seen <= set(found)
    seen = set(found)
"""


def test_processes_append_and_look_up_at_once(store: GenerationStore) -> None:
    store.append(numbered([5000]))
    store.append(numbered([5001]))
    cut(store.parts.folder / store.parts.names()[0])
    writers = [child(APPEND, store.folder, base) for base in (0, 1000, 2000, 150)]
    readers = [child(LOOK_UP, store.folder) for _ in range(2)]
    for process in writers + readers:
        with process:
            assert process.wait(120) == 0
    expected = {*range(450), *range(1000, 1300), *range(2000, 2300), 5001}
    assert set(answers(store, range(6000))) == expected
    stats = cache_stats(store)
    assert (stats.rows, stats.keys, stats.segments, stats.torn) == (1201, 1051, 61, 1)
    numbers = [int(name.partition("-")[0]) for name in store.parts.names()]
    assert len(set(numbers)) == 61
    assert stats.verdicts == len({*range(450), *range(1000, 1300), *range(2000, 2300)})


def test_threads_append_and_look_up_at_once(store: GenerationStore) -> None:
    def work(base: int) -> bool:
        for start in range(base, base + 100, 20):
            store.append(numbered(range(start, start + 20)))
            assert len(answers(store, range(start, start + 20))) == 20
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(0, 400, 100)))
    assert cache_stats(store).rows == 400


def test_a_program_that_keeps_the_index_open_is_named(store: GenerationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duckdb_file, "FOREIGN_WAIT_SECONDS", 0.2)
    store.append(numbered([1]))
    store.refresh()
    code = "c = duckdb.connect(sys.argv[1]); print('open', flush=True); time.sleep(60)"
    with child(code, store.file.path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(LockedError, match="another program keeps"):
            store.lookup(keys([1]))
        process.kill()
    assert answers(store, [1]) == {1: ["answer 1"]}


# Damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, empty])
def test_a_torn_segment_is_set_aside(store: GenerationStore, damage, caplog: pytest.LogCaptureFixture) -> None:  # noqa: ANN001
    store.append(numbered(range(5)))
    store.append(numbered(range(5, 10)))
    name = store.parts.names()[0]
    damage(store.parts.folder / name)
    assert list(answers(store, range(10))) == list(range(5, 10))
    assert f"{name}.torn" in caplog.text
    stats = cache_stats(store)
    assert (stats.segments, stats.torn, stats.rows) == (1, 1, 5)
    store.append(numbered(range(5)))
    store.rebuild()
    assert len(answers(store, range(10))) == 10


def test_a_parquet_file_that_is_no_segment_is_set_aside(store: GenerationStore) -> None:
    store.append(numbered(range(5)))
    store.parts.publish([store.parts.draft(pa.table({"other": [1]}))])
    store.parts.publish([store.parts.draft_bytes(b"no Parquet at all")])
    (store.parts.folder / "notes.txt").write_text("left alone")
    assert len(answers(store, range(5))) == 5
    assert (cache_stats(store).segments, cache_stats(store).torn) == (1, 2)


def test_a_segment_that_is_gone_is_forgotten(store: GenerationStore) -> None:
    store.append(numbered(range(5)))
    store.append(numbered(range(5, 10)))
    store.refresh()
    (store.parts.folder / store.parts.names()[0]).unlink()
    assert list(answers(store, range(10))) == list(range(5, 10))
    assert cache_stats(store).rows == 5


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 1000)


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def scramble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for position in range(8192, len(data), 512):
        data[position] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [garbage, empty, half, scramble, Path.unlink])
def test_a_damaged_index_is_made_again(store: GenerationStore, damage) -> None:  # noqa: ANN001
    store.append(numbered(range(3000)))
    before = cache_stats(store)
    damage(store.file.path)
    assert len(answers(store, range(3000))) == 3000
    assert cache_stats(store) == before


def test_damage_that_shows_in_the_middle_of_a_join_is_mended_by_the_next_call(store: GenerationStore) -> None:
    store.append(numbered(range(30_000)))
    store.refresh()
    data = bytearray(store.file.path.read_bytes())
    # In the second block lie rows, so the file can be opened.
    data[3 * 4096 + 262_144 + 1000] ^= 0xFF
    store.file.path.write_bytes(data)
    count = "SELECT count(*), bit_xor(hash(key, completions)) FROM cache.generations"
    with duckdb.connect() as con:
        with pytest.raises(ArtifactError, match=r"is damaged .*; run again"), store.attached(con):
            con.execute(count)
        with store.attached(con):
            assert con.execute(count).fetchall()[0][0] == 30_000


def test_rebuilding_changes_nothing(store: GenerationStore) -> None:
    for start in range(0, 50, 10):
        store.append(numbered(range(start, start + 20), f"text {start}"))
    before = cache_stats(store), answers(store, range(100))
    store.rebuild()
    assert (cache_stats(store), answers(store, range(100))) == before


# Disks


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "cache", Path("/proc/nothing/cache")):
        with pytest.raises(ArtifactError, match="cannot write"):
            GenerationStore(folder).append(numbered([1]))


@pytest.mark.parametrize("small_disk", ["2m"], indirect=True)
def test_a_read_only_cache_answers_and_refuses(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = GenerationStore(small_disk / "cache")
    store.append(numbered(range(5)))
    store.refresh()
    store.append(numbered(range(5, 10)))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert len(answers(store, range(10))) == 5
    assert "1 segments are not in its index" in caplog.text
    assert not list(small_disk.glob("**/*.lock"))
    with pytest.raises(ArtifactError, match=r"cannot write .*Read-only file system; choose a writable root"):
        store.append(numbered([11]))


@pytest.mark.parametrize("small_disk", ["2m"], indirect=True)
def test_a_full_disk_is_said_and_loses_nothing(small_disk: Path) -> None:
    store = GenerationStore(small_disk / "cache")
    chance, done = random.Random(0), 0
    with pytest.raises(ArtifactError, match="no space left while writing"):
        for done in range(100):
            store.append(rows([(key(done * 100 + i), [chance.randbytes(500).hex()]) for i in range(100)]))
            store.refresh()
    assert done
    store.file.delete()
    names = store.parts.names()
    assert len(names) in (done, done + 1)
    shutil.copytree(store.folder, small_disk.parent / "saved")
    saved = GenerationStore(small_disk.parent / "saved")
    assert len(answers(saved, range(done * 100))) == done * 100
    assert cache_stats(saved).torn == 0


# Against a model


CACHE_ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("append"), st.lists(st.tuples(st.integers(0, 30), st.lists(st.text(max_size=5), max_size=3)))
        ),
        st.tuples(st.just("judge"), st.lists(st.tuples(st.integers(0, 9), st.text(max_size=5)))),
        st.tuples(st.sampled_from(["rebuild", "reopen", "refresh", "lookup", "compact"]), st.lists(st.integers(0, 30))),
    ),
    max_size=8,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=CACHE_ACTIONS)
def test_it_is_a_dictionary_whose_first_value_stays(actions: list, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cache")
    store, model, verdict_model = GenerationStore(folder), {}, {}
    for action, argument in actions:
        if action == "append":
            store.append(rows([(key(n), completions) for n, completions in argument]))
            for n, completions in argument:
                model.setdefault(n, completions)
        elif action == "judge":
            store.append_verdicts(pa.concat_tables([verdicts([]), *(verdicts([n], text) for n, text in argument)]))
            for n, text in argument:
                verdict_model.setdefault(key(n), verdicts([n], text).to_pylist()[0])
        elif action == "rebuild":
            store.rebuild()
        elif action == "compact":
            compact(store, 8)
        elif action == "refresh":
            store.refresh()
        elif action == "reopen":
            store.close()
            store = GenerationStore(folder)
        else:
            assert answers(store, argument) == {n: model[n] for n in argument if n in model}
    assert answers(store, range(31)) == model
    assert cache_stats(store).keys == len(model)
    assert judged(store) == [verdict_model[k] for k in sorted(verdict_model)]
    shutil.rmtree(folder)
