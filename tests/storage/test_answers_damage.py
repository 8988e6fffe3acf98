"""The answers cache with damaged files and on bad disks."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from paraclip.storage.answers import AnswerStore
from paraclip_core.errors import ArtifactError
from tests.kit.generation_rows import answers, cut, filter_results, flip, key, numbered, rebuild, rows

Damage = Callable[[Path], object]


TORN = {"cut": cut, "flip": flip, "empty": lambda path: path.write_bytes(b""), "gone": Path.unlink}


@pytest.mark.parametrize("damage", TORN)
def test_a_torn_segment_is_set_aside_and_one_that_is_gone_forgotten(
    store: AnswerStore, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.append(numbered(range(5)))
    store.append(numbered(range(5, 10)))
    if damage == "gone":
        store.refresh()
    name = store.parts.names()[0]
    TORN[damage](store.parts.folder / name)
    assert list(answers(store, range(10))) == list(range(5, 10))
    assert (f"{name}.damaged" in caplog.text) == (damage != "gone")
    stats = store.stats()
    assert (stats.segments, stats.damaged, stats.rows) == (1, int(damage != "gone"), 5)
    store.append(numbered(range(5)))
    rebuild(store)
    assert len(answers(store, range(10))) == 10


def test_damage_that_came_after_indexing_is_said_with_what_to_do(store: AnswerStore) -> None:
    for start in (0, 5):
        store.append(numbered(range(start, start + 5)))
        store.append_filter_results(filter_results(range(start, start + 5)))
    store.refresh()
    for folder in (store.parts, store.filter_result_parts):
        (folder.folder / folder.names()[0]).write_bytes(b"no table")
    with pytest.raises(ArtifactError, match=r"delete .*answers\.duckdb and run again"):
        store.stats()
    store.file.path.unlink()
    stats = store.stats()
    assert (stats.segments, stats.damaged, stats.rows, stats.filter_results) == (1, 2, 5, 5)


def test_a_parquet_file_that_is_no_segment_is_set_aside(store: AnswerStore) -> None:
    store.append(numbered(range(5)))
    store.parts.publish([store.parts.draft(pa.table({"other": [1]}))])
    digest = hashlib.blake2b(b"no Parquet at all", digest_size=16).hexdigest()
    (store.parts.folder / f"00000003-{digest}.parquet").write_bytes(b"no Parquet at all")
    (store.parts.folder / "notes.txt").write_text("left alone")
    assert len(answers(store, range(5))) == 5
    assert (store.stats().segments, store.stats().damaged) == (1, 2)


def scramble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8192::512] = bytes(byte ^ 0xFF for byte in data[8192::512])
    path.write_bytes(data)


INDEX_DAMAGE: dict[str, Damage] = {
    "garbage": lambda path: path.write_bytes(b"garbage" * 1000),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "scrambled": scramble,
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", INDEX_DAMAGE.values(), ids=INDEX_DAMAGE)
def test_a_damaged_index_is_made_again(store: AnswerStore, damage: Damage) -> None:
    store.append(numbered(range(3000)))
    before = store.stats()
    damage(store.file.path)
    assert len(answers(store, range(3000))) == 3000
    assert store.stats() == before


def test_damage_that_shows_in_the_middle_of_a_join_is_mended_by_the_next_call(store: AnswerStore) -> None:
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


@pytest.mark.parametrize("small_disk", ["2m"], indirect=True)
def test_a_full_disk_is_said_and_loses_nothing(small_disk: Path) -> None:
    store = AnswerStore(small_disk / "cache")
    chance, done = random.Random(0), 0
    with pytest.raises((OSError, ArtifactError), match=r"(?i)no space left"):
        for done in range(100):
            store.append(rows([(key(done * 100 + i), [chance.randbytes(500).hex()]) for i in range(100)]))
            store.refresh()
    assert done
    store.file.delete()
    names = store.parts.names()
    assert len(names) in (done, done + 1)
    shutil.copytree(store.folder, small_disk.parent / "saved")
    saved = AnswerStore(small_disk.parent / "saved")
    assert len(answers(saved, range(done * 100))) == done * 100
    assert saved.stats().damaged == 0
