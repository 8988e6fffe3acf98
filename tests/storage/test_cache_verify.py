"""Reading a whole cache: torn segments and a wrong index are found and mended."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest
from generation_rows import answers, flip, judged, numbered, verdicts

from storage.cache_tools import Verified, cache_stats, verify_cache
from storage.generations import GenerationStore


def test_a_sound_cache(store: GenerationStore) -> None:
    for start in range(0, 30, 10):
        store.append(numbered(range(start, start + 10)))
    store.append(numbered([]))
    found = verify_cache(store)
    assert (found.sound, found.rows, found.torn, found.torn_before, found.mended) == (True, 30, (), 0, ())
    assert found.segments == len(store.parts.names())


def test_an_absent_cache_is_sound_and_stays_absent(store: GenerationStore) -> None:
    assert verify_cache(store) == Verified(0, 0, 0, (), 0, ())
    assert not store.folder.exists()


def test_damage_that_came_after_indexing_is_found(store: GenerationStore) -> None:
    store.append(numbered(range(10)))
    store.append(numbered(range(10, 20)))
    store.refresh()
    name = store.parts.names()[0]
    flip(store.parts.folder / name)
    # The index alone would not see it.
    assert len(answers(store, range(20))) == 20
    assert verify_cache(store) == Verified(1, 10, 0, (name,), 0, ())
    assert list(answers(store, range(20))) == list(range(10, 20))
    assert verify_cache(store) == Verified(1, 10, 0, (), 1, ())


def test_a_file_of_another_layout_is_set_aside(store: GenerationStore) -> None:
    store.append(numbered(range(10)))
    store.parts.publish([store.parts.draft(pa.table({"key": pa.array([b"x" * 16], pa.binary(16))}))])
    found = verify_cache(store)
    assert (found.segments, found.rows, len(found.torn)) == (1, 10, 1)


ONE = "WHERE rowid = (SELECT max(rowid) FROM {} WHERE part = 1)"
CHANGES = {
    "DELETE FROM generations " + ONE.format("generations"): [0],
    "DELETE FROM generations": [0, 1],
    "INSERT INTO generations FROM generations " + ONE.format("generations"): [0],
    "UPDATE generations SET completions = ['other'] " + ONE.format("generations"): [0],
    "UPDATE generations SET key = 'x'::BLOB " + ONE.format("generations"): [0],
    "UPDATE generations SET part = 2 " + ONE.format("generations"): [0, 1],
    "UPDATE generations_parts SET rows = 11 WHERE id = 2": [1],
    "UPDATE verdicts SET reason = 'other' " + ONE.format("verdicts"): [2],
    "UPDATE verdicts SET accepted = [] WHERE len(accepted) > 0": [2],
}


@pytest.mark.parametrize(("change", "mended"), CHANGES.items())
def test_tables_that_differ_are_mended(store: GenerationStore, change: str, mended: list[int]) -> None:
    store.append(numbered(range(10)))
    store.append(numbered(range(10, 20)))
    store.append_verdicts(verdicts(range(6)))
    before = answers(store, range(20)), cache_stats(store), judged(store)
    with duckdb.connect(store.file.path) as con:
        con.execute(change)
    names = [*store.parts.names(), *store.verdict_parts.names()]
    assert verify_cache(store) == Verified(2, 20, 6, (), 0, tuple(sorted(names[n] for n in mended)))
    assert (answers(store, range(20)), cache_stats(store), judged(store)) == before
    assert verify_cache(store).sound
    assert not (store.folder / "verify").exists()


def test_a_file_that_can_be_opened_and_not_read_is_made_again(store: GenerationStore) -> None:
    store.append(numbered(range(30_000)))
    store.refresh()
    data = bytearray(store.file.path.read_bytes())
    for position in range(3 * 4096 + 262_144, len(data), 262_144):
        data[position] ^= 0xFF
    store.file.path.write_bytes(data)
    assert not verify_cache(store).torn
    assert verify_cache(store).sound
    assert len(answers(store, range(30_000))) == 30_000


def test_torn_verdicts_are_set_aside(store: GenerationStore) -> None:
    store.append_verdicts(verdicts(range(10)))
    store.append_verdicts(verdicts(range(10, 15)))
    store.refresh()
    name = store.verdict_parts.names()[0]
    flip(store.verdict_parts.folder / name)
    assert verify_cache(store) == Verified(0, 0, 5, (name,), 0, ())
    assert len(judged(store)) == 5
