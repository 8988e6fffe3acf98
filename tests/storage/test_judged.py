"""Kept blocks: found again only while every answer that they were judged from still counts."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from generation_rows import flip, key, numbered  # pyright: ignore[reportMissingImports]

from storage import judged
from storage.compaction import compact
from storage.generations import GenerationStore
from storage.judged import JudgedStore
from storage.roots import open_generations


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judged, "PACK_BLOCKS", 3)
    monkeypatch.setattr(judged, "KEEP_SECONDS", 1e9)


@pytest.fixture
def cache(tmp_path: Path) -> GenerationStore:
    """A cache with two segments."""
    store = GenerationStore(tmp_path)
    store.append(numbered(range(5)))
    store.append(numbered(range(5, 9)))
    return store


def parts(number: int) -> list[pa.RecordBatch]:
    rows = pa.RecordBatch.from_pydict({"x": [number], "text": [f"row {number}"]})
    return [rows.replace_schema_metadata({b"about": str(number).encode()}), rows.slice(0, 0)]


def keep(cache: GenerationStore, numbers: Sequence[int], asked: bool = False) -> None:
    store = JudgedStore(cache)
    for number in numbers:
        store.keep(key(number), key(number - 1), parts(number), asked)
    store.close()


def found(cache: GenerationStore, numbers: Sequence[int], read_only: bool = False) -> list[int]:
    """Those of the blocks that are found, and found whole."""
    store, there = JudgedStore(cache, read_only), []
    for number in numbers:
        blocks = store.find(key(number))
        if blocks is not None:
            assert [block.to_pydict() for block in blocks] == [block.to_pydict() for block in parts(number)]
            assert blocks[0].schema.metadata == parts(number)[0].schema.metadata
            there.append(number)
    return there


def packs(cache: GenerationStore) -> list[Path]:
    return sorted((cache.folder / "judged").glob("*.blocks"))


def test_what_was_kept_is_found(cache: GenerationStore) -> None:
    assert found(cache, range(8)) == []
    keep(cache, range(8))
    assert len(packs(cache)) == 3
    assert found(cache, range(10)) == list(range(8))
    assert found(cache, range(10), read_only=True) == list(range(8))
    # A block in the middle of a pack is found behind the one before it.
    assert found(cache, [3, 4]) == [3, 4]


def test_another_pass_goes_on_behind_the_blocks_it_shares(cache: GenerationStore) -> None:
    keep(cache, range(5))
    store = JudgedStore(cache)
    assert [store.find(key(number)) is not None for number in (0, 1, 2, 3, 4, 5, 6)] == [True] * 5 + [False] * 2
    for number in (5, 6):
        store.keep(key(number), key(number - 1), parts(number), True)
    store.close()
    assert found(cache, range(8)) == list(range(7))


def test_blocks_that_do_not_follow_each_other_get_packs_of_their_own(cache: GenerationStore) -> None:
    keep(cache, [0, 5, 6])
    assert len(packs(cache)) == 2
    assert found(cache, [5, 6]) == [5, 6]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text"])
def test_a_damaged_pack_is_kept_anew(damage: str, cache: GenerationStore, caplog: pytest.LogCaptureFixture) -> None:
    keep(cache, range(6))
    path = next(path for path in packs(cache) if path.stem == key(0).hex())
    if damage == "flip":
        flip(path)
    else:
        path.write_bytes({"cut": path.read_bytes()[:-1], "empty": b"", "text": b"hello\nworld\n"}[damage])
    with caplog.at_level(logging.WARNING):
        assert found(cache, range(6)) == [3, 4, 5]
    assert f"{path} is damaged" in caplog.text
    keep(cache, range(3))
    assert found(cache, range(6)) == list(range(6))


def test_a_pack_under_another_name_is_not_taken_for_it(cache: GenerationStore) -> None:
    keep(cache, range(3))
    packs(cache)[0].rename(cache.folder / "judged" / f"{key(7).hex()}.blocks")
    assert found(cache, [7]) == []


def test_more_generations_change_nothing(cache: GenerationStore) -> None:
    keep(cache, range(3))
    cache.append(numbered(range(20, 25)))
    cache.rebuild()
    assert found(cache, range(3)) == [0, 1, 2]


@pytest.mark.parametrize("change", ["lost", "torn", "in front", "all gone", "history"])
def test_where_an_answer_may_have_changed_all_is_forgotten(change: str, cache: GenerationStore) -> None:
    keep(cache, range(3))
    names = cache.segments.names()
    if change == "lost":
        (cache.segments.folder / names[1]).unlink()
    elif change == "torn":
        flip(cache.segments.folder / names[0])
        GenerationStore(cache.folder).rebuild()
        assert cache.stats().torn == 1
    elif change == "in front":
        # As a machine that answered before this one, and is seen only now.
        other = GenerationStore(cache.folder.parent / "other")
        other.append(numbered(range(3), "other answer"))
        (name,) = other.segments.names()
        early = f"{1:08d}-{'0' * 32}.parquet"
        (other.segments.folder / name).rename(cache.segments.folder / early)
        assert cache.segments.names()[0] == early
    elif change == "all gone":
        for name in names:
            (cache.segments.folder / name).unlink()
    else:
        (cache.folder / "judged" / "history.json").write_text("[]")
    assert found(cache, range(3), read_only=True) == []
    assert len(packs(cache)) == 1
    assert found(cache, range(3)) == []
    assert packs(cache) == []
    keep(cache, range(3))
    assert found(cache, range(3)) == [0, 1, 2]


def test_compaction_keeps_them(cache: GenerationStore) -> None:
    keep(cache, range(3))
    cache.append(numbered(range(20, 25)))
    before = cache.segments.names()
    assert compact(cache).after == 1
    assert set(before).isdisjoint(cache.segments.names())
    assert found(cache, range(3)) == [0, 1, 2]


def test_compaction_revives_nothing(cache: GenerationStore) -> None:
    keep(cache, range(3))
    cache.append(numbered(range(20, 25)))
    (cache.segments.folder / cache.segments.names()[0]).unlink()
    compact(cache)
    assert found(cache, range(3)) == []


@pytest.mark.parametrize(("asked", "kept"), [(False, [0, 1, 2, 3, 4, 5]), (True, [0, 1, 2])])
def test_what_others_write_meanwhile_may_be_the_answer_that_counts(
    asked: bool, kept: list[int], cache: GenerationStore
) -> None:
    store = JudgedStore(cache)
    for number in range(9):
        if number == 4:
            GenerationStore(cache.folder).append(numbered(range(40, 44), "theirs"))
        if number % 2:
            # This pass's own answers count.
            cache.append(numbered(range(100 + number, 102 + number)))
        store.keep(key(number), key(number - 1), parts(number), asked)
        if number == 5:
            cache.append(numbered(range(200, 201)))
    store.close()
    assert found(cache, range(6)) == kept
    # What follows depends on what was not kept.
    assert found(cache, range(6, 9)) == ([] if asked else [6, 7, 8])


def test_one_asked_block_among_those_that_wait_is_enough(cache: GenerationStore) -> None:
    store = JudgedStore(cache)
    for number, asked in enumerate((True, False)):
        store.keep(key(number), key(number - 1), parts(number), asked)
    GenerationStore(cache.folder).append(numbered(range(40, 44), "theirs"))
    store.close()
    assert found(cache, range(2)) == []


def lose(cache: GenerationStore, at: int) -> None:
    (cache.segments.folder / cache.segments.names()[at]).unlink()


def test_answers_that_came_during_a_pass_must_stay_too(cache: GenerationStore) -> None:
    store = JudgedStore(cache)
    cache.append(numbered(range(40, 44)))
    store.keep(key(0), key(-1), parts(0), True)
    store.close()
    assert found(cache, [0]) == [0]
    lose(cache, -1)
    assert found(cache, [0]) == []


def test_a_pass_keeps_nothing_that_another_one_forgot(cache: GenerationStore) -> None:
    store = JudgedStore(cache)
    store.keep(key(0), key(-1), parts(0), False)
    lose(cache, 0)
    assert found(cache, [0]) == []
    store.close()
    assert found(cache, [0]) == []


def test_a_pass_revives_nothing_of_another_one(cache: GenerationStore) -> None:
    store = JudgedStore(cache)
    cache.append(numbered(range(40, 44)))
    keep(cache, [5])
    lose(cache, -1)
    store.keep(key(0), key(-1), parts(0), False)
    store.close()
    assert found(cache, [5]) == []


def test_segments_that_vanish_during_a_pass_end_the_keeping(cache: GenerationStore) -> None:
    store = JudgedStore(cache)
    for number in range(8):
        if number == 4:
            (cache.segments.folder / cache.segments.names()[0]).unlink()
        store.keep(key(number), key(number - 1), parts(number), False)
    store.close()
    assert [path.stem for path in packs(cache)] == [key(0).hex()]
    assert found(cache, range(8)) == []


def test_stop_keeps_what_was_before(cache: GenerationStore) -> None:
    store = JudgedStore(cache)
    store.keep(key(0), key(-1), parts(0), False)
    store.stop()
    store.keep(key(1), key(0), parts(1), False)
    store.close()
    assert found(cache, [0, 1]) == [0]


def test_reading_alone_changes_nothing(tmp_path: Path, cache: GenerationStore) -> None:
    absent = GenerationStore(tmp_path / "absent")
    assert found(absent, [0], read_only=True) == []
    assert not absent.folder.exists()
    store = JudgedStore(cache, read_only=True)
    store.keep(key(0), key(-1), parts(0), False)
    store.close()
    assert not (cache.folder / "judged").exists()


def test_what_cannot_be_written_costs_no_work(
    cache: GenerationStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = JudgedStore(cache)

    def full(*_: object) -> None:
        raise judged.storage_error(OSError(28, "No space left on device"), cache.folder)

    monkeypatch.setattr(judged, "write_atomic", full)
    for number in range(7):
        store.keep(key(number), key(number - 1), parts(number), False)
    store.close()
    assert caplog.text.count("judged blocks are not kept: no space left") == 1


def test_what_nobody_uses_goes(cache: GenerationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(cache, range(9))
    old = time.time() - 31 * 86_400
    for path in packs(cache):
        os.utime(path, (old, old))
    # Looking into two of them is use; the third one goes when something is kept the next time.
    assert found(cache, range(6)) == list(range(6))
    assert len(packs(cache)) == 3
    keep(cache, [50])
    assert found(cache, range(9)) == list(range(6))
    assert len(packs(cache)) == 3
    used = {path: path.stat().st_mtime for path in packs(cache)}
    for age, path in enumerate(sorted(used)):
        os.utime(path, (used[path] - age, used[path] - age))
    monkeypatch.setattr(judged, "MOST_BYTES", sum(path.stat().st_size for path in used) - 1)
    keep(cache, [60])
    assert len(packs(cache)) < 4
    assert found(cache, [60]) == [60]


def test_drafts_of_killed_writers_go_after_a_day(cache: GenerationStore) -> None:
    keep(cache, range(3))
    old, young = (cache.folder / "judged" / f".{name}.blocks.tmp" for name in ("old", "young"))
    for path, age in ((old, 90_000), (young, 80_000)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age, time.time() - age))
    keep(cache, range(3, 6))
    assert not old.exists() and young.exists()


def test_other_machines_are_asked_first(machine: Any, objects: Any, tmp_path: Path) -> None:
    early, late = two_names(tmp_path)
    here = open_generations(machine("one"))
    here.append(late)
    keep(here, range(3), asked=True)
    assert found(open_generations(machine("one")), range(3)) == [0, 1, 2]
    # Another machine took the same turn, and its name comes first.
    (name,) = early.segments.names()
    objects.write(f"cache/segments/{name}", early.segments.read_bytes(name))
    again = open_generations(machine("one"))
    assert found(again, range(3)) == []
    assert again.segments.names()[0] == name


def two_names(folder: Path) -> tuple[GenerationStore, pa.Table]:
    """A cache of one segment, and generations whose segment's name comes behind it."""
    caches = {}
    for text in ("answer", "other"):
        other = GenerationStore(folder / text)
        other.append(numbered(range(3), text))
        caches[other.segments.names()[0]] = other, numbered(range(3), text)
    return caches[min(caches)][0], caches[max(caches)][1]


def test_a_slow_pass_keeps_blocks_by_the_clock(cache: GenerationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judged, "KEEP_SECONDS", 0.0)
    store = JudgedStore(cache)
    store.keep(key(1), key(0), parts(1), False)
    store.keep(key(2), key(1), parts(2), False)
    # Killed here: nothing is closed.
    assert found(cache, [1, 2], read_only=True) == [1, 2]
