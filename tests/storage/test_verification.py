"""Reading a whole cache: torn segments and a wrong index are found and mended."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest
from generation_rows import answers, flip, numbered

from storage.generations import GenerationStore
from storage.verification import Verified, verify_cache


def test_a_sound_cache(store: GenerationStore) -> None:
    for start in range(0, 30, 10):
        store.append(numbered(range(start, start + 10)))
    store.append(numbered([]))
    found = verify_cache(store)
    assert (found.sound, found.rows, found.torn, found.torn_before, found.mended) == (True, 30, (), 0, ())
    assert found.segments == len(store.segments.names())


def test_an_absent_cache_is_sound_and_stays_absent(store: GenerationStore) -> None:
    assert verify_cache(store) == Verified(0, 0, (), 0, ())
    assert not store.folder.exists()


def test_damage_that_came_after_indexing_is_found(store: GenerationStore) -> None:
    store.append(numbered(range(10)))
    store.append(numbered(range(10, 20)))
    store.refresh()
    name = store.segments.names()[0]
    flip(store.segments.folder / name)
    # The index alone would not see it.
    assert len(answers(store, range(20))) == 20
    assert verify_cache(store) == Verified(1, 10, (name,), 0, ())
    assert list(answers(store, range(20))) == list(range(10, 20))
    assert verify_cache(store) == Verified(1, 10, (), 1, ())


def test_a_file_of_another_layout_is_set_aside(store: GenerationStore) -> None:
    store.append(numbered(range(10)))
    store.segments.publish([store.segments.draft(pa.table({"key": pa.array([b"x" * 16], pa.binary(16))}))])
    found = verify_cache(store)
    assert (found.segments, found.rows, len(found.torn)) == (1, 10, 1)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE generations SET place = 4 WHERE rowid = 3",
        "UPDATE generations SET key = key + 1 WHERE rowid = 3",
        "UPDATE generations SET attempt = 9 WHERE rowid = 3",
        "UPDATE generations SET group_id = 7 WHERE rowid = 3",
        "DELETE FROM generations WHERE rowid = 3",
        "DELETE FROM generations",
        "INSERT INTO generations SELECT * FROM generations LIMIT 1",
    ],
)
def test_an_index_that_differs_is_mended(store: GenerationStore, change: str) -> None:
    store.append(numbered(range(10)))
    store.append(numbered(range(10, 20)))
    before = answers(store, range(20)), store.stats()
    with duckdb.connect(store.index_path) as con:
        con.execute(change)
    names = tuple(store.segments.names()) if change == "DELETE FROM generations" else (store.segments.names()[0],)
    assert verify_cache(store) == Verified(2, 20, (), 0, names)
    assert (answers(store, range(20)), store.stats()) == before
    assert verify_cache(store).sound


def test_a_key_that_is_not_where_it_should_be_is_found_again(store: GenerationStore) -> None:
    store.append(numbered(range(20)))
    store.refresh()
    path = store.index_path.with_suffix(".index") / "run-1.keys"
    path.write_bytes(bytes(path.stat().st_size))
    assert not answers(store, range(20))
    assert len(verify_cache(store).mended) == 1
    assert len(answers(store, range(20))) == 20


@pytest.mark.parametrize(
    ("file", "position", "mended"),
    [("texts.bin", 3, [0]), ("strings.u64", 8 * 4, [0]), ("rows.u64", 24 * 15 + 2, [0, 1])]
    + [("rows.u64", 8 + 24 * 3 + byte, [0]) for byte in (0, 9)]  # of a key's halves
    + [("run-3.keys", position, [0, 1]) for position in (0, 4, -8, -4)],  # of rows and of keys
)
def test_a_changed_file_of_the_index_is_found(
    store: GenerationStore, file: str, position: int, mended: list[int]
) -> None:
    store.append(numbered(range(10)))
    store.refresh()
    store.append(numbered(range(10, 20)))
    before = answers(store, range(20)), store.stats()
    path = store.index_path.with_suffix(".index") / file
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)
    assert verify_cache(store) == Verified(2, 20, (), 0, tuple(store.segments.names()[n] for n in mended))
    assert (answers(store, range(20)), store.stats()) == before
    assert verify_cache(store).sound
