"""The answers cache under kills and under many at once: nothing is lost, nothing is doubled."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from paraclip.storage.answers import AnswerStore
from paraclip_core.errors import ArtifactError
from tests.kit.generation_rows import answers, child, cut, filter_results, filtered, keys, numbered
from tests.kit.machines import AT_ONCE


def test_a_power_cut_takes_nothing_that_was_appended(store: AnswerStore, on_disk: Callable[[Path], bool]) -> None:
    store.append(numbered(range(10)))
    segments = store.parts.folder
    assert all(map(on_disk, (segments, *(segments / name for name in store.parts.names()))))
    store.append_filter_results(filter_results(range(10)))
    assert all(map(on_disk, (store.filter_result_parts.folder, *store.filter_result_parts.folder.iterdir())))


APPEND_FOREVER = """
store = AnswerStore(sys.argv[1])
for chunk in range(10_000):
    store.append(numbered(range(int(sys.argv[2]) + 10 * chunk, int(sys.argv[2]) + 10 * chunk + 10)))
    if chunk % 3 == 2:
        store.refresh()
    print(chunk, flush=True)
"""


@pytest.mark.parametrize("turns", [1, pytest.param(6, marks=pytest.mark.nightly)])
def test_what_was_appended_survives_kills_at_any_time(store: AnswerStore, turns: int) -> None:
    chance, count = random.Random(0), 0
    for turn in range(turns):
        base = 1_000_000 * turn
        with child(APPEND_FOREVER, store.folder, base) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.3 * chance.random())
            process.send_signal(signal.SIGKILL)
            chunks = 1 + len(process.stdout.read().split())
        completions = answers(store, range(base, base + 10 * chunks + 10))
        assert set(range(base, base + 10 * chunks)) <= set(completions)
        count += len(completions)
    assert store.stats().rows == store.stats().keys == count
    assert store.stats().damaged == 0


KILL_AT = {
    "before the part has its name": "PartFolder.publish = die",
    "before the file is open": "CacheFile.catch_up = die",
    "before the rows are inserted": "PartFolder.open = die",
    # The rows are inserted, their part is not noted yet.
    "inside the transaction": """
module.NOTE = "SELECT die()"
connect = duckdb.connect
def with_death(*arguments, **options):
    con = connect(*arguments, **options)
    con.create_function("die", lambda: die(), [], "INTEGER")
    return con
duckdb.connect = with_death
""",
    "after one table has its rows": "PartFolder.open = dying_after(1)(PartFolder.open)",
}
APPEND_BOTH = """
store = AnswerStore(sys.argv[1])
store.append_filter_results(filter_results(range(5, 10)))
store.append(numbered(range(5, 10)))
store.refresh()
"""
QUICK = "inside the transaction"


@pytest.mark.parametrize(
    "point", [at if at == QUICK else pytest.param(at, marks=pytest.mark.nightly) for at in KILL_AT]
)
def test_killed_between_part_and_table(store: AnswerStore, point: str) -> None:
    store.append(numbered(range(5)))
    store.append_filter_results(filter_results(range(5)))
    store.refresh()
    with child(KILL_AT[point] + APPEND_BOTH, store.folder) as process:
        assert process.wait(120) == -signal.SIGKILL
    count = 5 if point == "before the part has its name" else 10
    started = time.monotonic()
    assert list(answers(store, range(10))) == list(range(count))
    assert time.monotonic() - started < AT_ONCE
    assert store.stats().rows == count
    assert len(filtered(store)) == count


def test_drafts_of_killed_writers_are_swept_after_a_day(store: AnswerStore) -> None:
    store.append(numbered([1]))
    old, new = (store.parts.folder / f".{name}.tmp" for name in ("old", "new"))
    old.write_bytes(b"")
    new.write_bytes(b"")
    os.utime(old, (0, time.time() - 90_000))
    store.close()
    assert (old.exists(), new.exists()) == (False, True)


APPEND = """
store = AnswerStore(sys.argv[1])
base = int(sys.argv[2])
for chunk in range(8):
    numbers = range(base + 20 * chunk, base + 20 * chunk + 20)
    store.append(numbered(numbers))
    store.append_filter_results(filter_results(numbers))
    assert list(answers(store, numbers)) == list(numbers)
"""

LOOK_UP = """
store, seen = AnswerStore(sys.argv[1]), set()
while len(seen) < 270:
    found = answers(store, range(3000))
    assert all(text == [f"answer {n}"] for n, text in found.items())
    assert seen <= set(found)
    seen = set(found)
"""


def test_processes_append_and_look_up_at_once(store: AnswerStore) -> None:
    store.append(numbered([5000]))
    store.append(numbered([5001]))
    cut(store.parts.folder / store.parts.names()[0])
    processes = [child(APPEND, store.folder, base) for base in (0, 110)] + [child(LOOK_UP, store.folder)]
    for process in processes:
        with process:
            assert process.wait(120) == 0
    assert set(answers(store, range(6000))) == {*range(270), 5001}
    stats = store.stats()
    assert (stats.rows, stats.keys, stats.segments, stats.damaged) == (321, 271, 17, 1)
    assert len({name.partition("-")[0] for name in store.parts.names()}) == 17
    assert stats.filter_results == 270


def test_a_program_that_keeps_the_index_open_is_named(store: AnswerStore) -> None:
    store.append(numbered([1]))
    store.refresh()
    code = "c = duckdb.connect(sys.argv[1]); print('open', flush=True); time.sleep(60)"
    with child(code, store.file.path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(ArtifactError, match=f"answers.duckdb is unusable.*PID {process.pid}"):
            store.lookup(keys([1]))
        process.kill()
    assert answers(store, [1]) == {1: ["answer 1"]}
