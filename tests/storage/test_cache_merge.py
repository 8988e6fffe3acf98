"""Two caches become one; many small segments become few big ones, whatever is killed."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pyarrow as pa
import pytest
from generation_rows import answers, child, flip, judged, key, numbered, rebuild, rows, verdicts

from paraclip.storage.cache_merge import Compacted, Merged, compact, merge
from paraclip.storage.cache_tools import cache_stats, paid_tokens
from paraclip.storage.generations import GENERATIONS, GenerationStore
from paraclip.storage.parts import REPLACED, PartFolder
from paraclip_core.errors import ArtifactError

# Merging


@pytest.fixture
def ours(tmp_path: Path) -> GenerationStore:
    return GenerationStore(tmp_path / "ours")


@pytest.fixture
def theirs(tmp_path: Path) -> GenerationStore:
    return GenerationStore(tmp_path / "theirs")


def test_caches_merge_and_merging_twice_changes_nothing(ours: GenerationStore, theirs: GenerationStore) -> None:
    ours.append(numbered(range(5), "ours"))
    theirs.append(numbered(range(3, 8), "theirs"))
    theirs.append(numbered(range(8, 10), "theirs"))
    theirs.append(numbered(range(10, 12), "theirs"))
    theirs.append(numbered(range(3, 5), "theirs"))
    flip(theirs.parts.folder / theirs.parts.names()[2])
    assert merge(ours, theirs.folder) == Merged(segments=2, new=5, known=4, unwanted=0, damaged=1)
    merged = answers(ours, range(20))
    assert merged == {n: [f"ours {n}"] if n < 5 else [f"theirs {n}"] for n in range(10)}
    assert (cache_stats(ours).rows, cache_stats(ours).keys) == (10, 10)
    before = ours.parts.names()
    assert merge(ours, theirs.folder) == Merged(segments=0, new=0, known=9, unwanted=0, damaged=1)
    assert ours.parts.names() == before and answers(ours, range(20)) == merged
    # What is damaged is their affair.
    stats = cache_stats(GenerationStore(theirs.folder))
    assert (stats.segments, stats.torn) == (3, 1)


def test_an_empty_cache_takes_the_same_parts_in_the_same_order(ours: GenerationStore, theirs: GenerationStore) -> None:
    for start in (0, 5, 3):
        theirs.append(numbered(range(start, start + 5), f"text {start}"))
    assert merge(ours, theirs.folder) == Merged(segments=3, new=15, known=0, unwanted=0, damaged=0)
    assert [ours.parts.read(n) for n in ours.parts.names()] == [theirs.parts.read(n) for n in theirs.parts.names()]
    assert not ours.file.path.exists()
    assert answers(ours, range(20)) == answers(theirs, range(20))


def test_every_part_brings_its_new_rows(ours: GenerationStore, theirs: GenerationStore, tmp_path: Path) -> None:
    ours.append(numbered(range(15, 35), "ours"))
    for start in range(0, 100, 10):
        theirs.append(numbered(range(start, start + 10), "theirs"))
    assert merge(ours, theirs.folder) == Merged(segments=9, new=80, known=20, unwanted=0, damaged=0)
    assert answers(ours, range(100)) == {n: [f"ours {n}" if 15 <= n < 35 else f"theirs {n}"] for n in range(100)}
    # An exported folder has the parts alone.
    exported = GenerationStore(tmp_path / "exported")
    assert merge(exported, theirs.folder).new == 100
    assert not exported.file.path.exists()


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        ({"model": "m"}, {1, 2, 3}),
        ({"model": "[no]"}, {4, 5}),
        ({"model": "?", "step": "2"}, {3, 4}),
        ({"engine": "file"}, {1, 2, 3, 4, 5}),
        ({"engine": "openvino"}, set()),
        ({"nothing": "*"}, set()),
    ],
)
def test_only_what_is_wanted_is_taken(
    ours: GenerationStore, theirs: GenerationStore, wanted: dict[str, str], kept: set[int]
) -> None:
    theirs.append(numbered([1, 2], step=1, model="m"))
    mixed = pa.concat_tables([numbered([3], step=2, model="m"), numbered([4], step=2, model="n")])
    theirs.append(mixed)
    theirs.append(numbered([5], step=1, model="o"))
    found = merge(ours, theirs.folder, wanted)
    assert (found.new, found.unwanted) == (len(kept), 5 - len(kept))
    assert set(answers(ours, range(10))) == kept
    before = ours.parts.names()
    again = merge(ours, theirs.folder, wanted)
    assert (again.new, again.known, again.unwanted) == (0, len(kept), 5 - len(kept))
    assert ours.parts.names() == before
    # Segments that were taken over whole are known for what is wanted of them, too.
    merge(ours, theirs.folder)
    whole = merge(ours, theirs.folder, wanted)
    assert (whole.new, whole.known, whole.unwanted) == (0, len(kept), 5 - len(kept))


def test_what_other_writers_keep_beside_comes_along(ours: GenerationStore, theirs: GenerationStore) -> None:
    theirs.append(numbered([1]).append_column("note", pa.array(["kept"])))
    merge(ours, theirs.folder)
    assert ours.parts.read(ours.parts.names()[0]) == theirs.parts.read(theirs.parts.names()[0])


def test_generations_that_do_not_say_what_they_cost_are_taken_over(
    ours: GenerationStore, theirs: GenerationStore
) -> None:
    theirs.append(numbered(range(3)).select(GENERATIONS.schema.names))
    assert merge(ours, theirs.folder) == Merged(segments=1, new=3, known=0, unwanted=0, damaged=0)
    assert answers(ours, range(5)) == answers(theirs, range(5))
    assert paid_tokens(ours.folder, "file", "m") == (0, 0)


def test_a_key_that_they_answered_twice_keeps_its_first_answer(ours: GenerationStore, theirs: GenerationStore) -> None:
    ours.append(numbered([9]))
    theirs.append(rows([(key(1), ["first"]), (key(1), ["second"])]))
    theirs.append(rows([(key(1), ["third"])]))
    merge(ours, theirs.folder)
    assert answers(ours, [1]) == {1: ["first"]}


def test_a_folder_that_is_no_cache_is_refused(ours: GenerationStore, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no cache folder: it has no `segments`"):
        merge(ours, tmp_path)
    ours.append(numbered([1]))
    with pytest.raises(ArtifactError, match="is this cache itself"):
        merge(ours, ours.folder)


def test_segments_that_are_joined_meanwhile_are_all_taken_over_once(
    ours: GenerationStore, theirs: GenerationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for start in range(0, 50, 10):
        theirs.append(numbered(range(start, start + 10)))
    read, joined = PartFolder.read_bytes, []

    def slow(folder: PartFolder, name: str) -> bytes:
        if name.startswith("00000003") and not joined:
            joined.append(name)
            compact(theirs)
        return read(folder, name)

    monkeypatch.setattr(PartFolder, "read_bytes", slow)
    found = merge(ours, theirs.folder)
    assert (found.new, found.known, found.damaged) == (50, 0, 0)
    assert (cache_stats(ours).rows, cache_stats(ours).keys) == (50, 50)


# Compacting


def fill(store: GenerationStore, segments: int, size: int = 10, base: int = 0) -> None:
    for start in range(base, base + segments * size, size):
        store.append(numbered(range(start, start + size), f"text {start}"))


def test_small_segments_become_one(store: GenerationStore, caplog: pytest.LogCaptureFixture) -> None:
    fill(store, 20)
    before = answers(store, range(300)), cache_stats(store)
    assert compact(store) == Compacted(before=20, after=1, rows=200, torn=0)
    after = cache_stats(store)
    assert answers(store, range(300)) == before[0]
    assert (after.rows, after.keys, after.segments, after.groups) == (200, 200, 1, before[1].groups)
    assert "gone" not in caplog.text
    assert [p.name for p in store.parts.folder.iterdir()] == store.parts.names()
    assert compact(store) == Compacted(before=1, after=1, rows=0, torn=0)
    rebuild(store)
    assert answers(store, range(300)) == before[0]


def test_each_move_is_on_the_disk_before_the_next(store: GenerationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, 2)
    store.refresh()
    folder, told = store.parts.folder, []

    def note(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == folder.stat().st_ino:
            told.append((len(list(folder.glob("*.parquet"))), (folder / REPLACED).exists()))

    monkeypatch.setattr(os, "fsync", note)
    compact(store)
    # The note, the big segment under its name, the small ones gone; only then the note may go.
    assert told == [(2, True), (3, True), (1, True)]


def test_the_first_answer_stays_the_first(store: GenerationStore) -> None:
    fill(store, 1, base=0)
    store.append(numbered(range(5, 15), "second"))
    store.append(rows([]))
    store.append(numbered(range(12, 20), "third"))
    before = answers(store, range(30))
    compact(store)
    store.append(numbered(range(25), "fourth"))
    for _ in range(2):
        assert answers(store, range(20)) == before
        rebuild(store)
    # Repeated rows are kept, too: they were paid for.
    assert cache_stats(store).rows == 10 + 10 + 8 + 25


def test_big_segments_are_left_alone_and_order_holds(store: GenerationStore) -> None:
    fill(store, 3)
    store.append(numbered(range(60), "big"))
    fill(store, 4, base=60)
    before, names = answers(store, range(200)), store.parts.names()
    assert compact(store, target_rows=100) == Compacted(before=8, after=3, rows=70, torn=0)
    assert names[3] in store.parts.names()
    assert answers(store, range(200)) == before
    assert compact(store, target_rows=100).rows == 0


def test_groups_stay_below_the_target(store: GenerationStore) -> None:
    fill(store, 11)
    assert compact(store, target_rows=35).after == 4
    assert [store.parts.read(name).num_rows for name in store.parts.names()] == [30, 30, 30, 20]


def test_other_columns_stay_and_are_not_mixed(store: GenerationStore) -> None:
    noted = [numbered([n]).append_column("note", pa.array([f"note {n}"])) for n in range(4)]
    for table in (*noted[:2], numbered([10]), numbered([11]), *noted[2:]):
        store.append(table)
    assert compact(store).after == 3
    import pyarrow.parquet as pq

    first = pq.read_table(store.parts.folder / store.parts.names()[0])
    assert first.column("note").to_pylist() == ["note 0", "note 1"]


def test_a_torn_segment_is_set_aside_and_the_rest_joined(store: GenerationStore) -> None:
    fill(store, 5)
    store.refresh()
    flip(store.parts.folder / store.parts.names()[2])
    assert compact(store) == Compacted(before=5, after=1, rows=40, torn=1)
    assert cache_stats(store).torn == 1
    assert len(answers(store, range(50))) == 40


def test_verdicts_are_compacted_too(store: GenerationStore, caplog: pytest.LogCaptureFixture) -> None:
    for start in range(0, 50, 10):
        store.append_verdicts(verdicts(range(start, start + 12), f"text {start}"))
    before = judged(store)
    assert compact(store) == Compacted(before=5, after=1, rows=60, torn=0)
    assert judged(store) == before
    assert "gone" not in caplog.text
    rebuild(store)
    assert judged(store) == before


def test_parts_that_came_since_the_table_last_followed_are_in_it_afterwards(store: GenerationStore) -> None:
    fill(store, 2)
    store.refresh()
    fill(store, 2, base=20)
    names = store.parts.names()
    store.parts.replace(names, store.parts.draft(pa.concat_tables([store.parts.read(name) for name in names])))
    assert len(answers(store, range(40))) == 40
    assert (cache_stats(store).rows, cache_stats(store).segments) == (40, 1)


def test_an_absent_cache_has_nothing_to_compact(store: GenerationStore) -> None:
    assert compact(store) == Compacted(0, 0, 0, 0)
    assert not store.folder.exists()


KILL_AT = """
import pathlib
point, after = sys.argv[2], dying_after(int(sys.argv[3]))
if point == "the draft is written":
    PartFolder.draft = after(PartFolder.draft)
elif point == "the note is written":
    parts.write_json = after(parts.write_json)
elif point == "the new name is there":
    parts.sync_folder = after(parts.sync_folder)
elif point == "some of the old are deleted":
    pathlib.Path.unlink = after(pathlib.Path.unlink)
elif point == "the parts have moved":
    PartFolder.replace = after(PartFolder.replace)
elif point == "the table has followed":
    CacheFile.catch_up = after(CacheFile.catch_up)
elif point == "the table has followed, the note is there":
    PartFolder.settle = die
cache_merge.compact(GenerationStore(sys.argv[1]), 60)
"""


@pytest.mark.parametrize(
    ("point", "deaths"),
    [
        ("the draft is written", 0),
        ("the note is written", 0),
        ("the new name is there", 0),
        *(("some of the old are deleted", n) for n in range(0, 24, 3)),
        ("the parts have moved", 0),
        ("the parts have moved", 1),
        ("the table has followed", 1),
        ("the table has followed, the note is there", 0),
    ],
)
def test_killed_at_every_step(
    store: GenerationStore, point: str, deaths: int, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store, 11)
    store.refresh()
    before = answers(store, range(200))
    with child(KILL_AT, store.folder, point, deaths) as process:
        assert process.wait(120) == -signal.SIGKILL
    # First as an appender finds it, before any index is opened.
    store.append(numbered(range(500, 510)))
    read = sum(store.parts.read(name).num_rows for name in store.parts.names())
    assert read == 120
    assert answers(store, range(200)) == before
    assert (cache_stats(store).rows, cache_stats(store).keys, cache_stats(store).torn) == (120, 120, 0)
    assert "gone" not in caplog.text
    compact(store, 60)
    assert (cache_stats(store).rows, cache_stats(store).keys, cache_stats(store).segments) in (
        (120, 120, 2),
        (120, 120, 3),
    )
    assert answers(store, range(200)) == before
    assert not (store.parts.folder / REPLACED).exists()


COMPACT_FOREVER = """
from paraclip.storage.cache_merge import compact
store = GenerationStore(sys.argv[1])
print("started", flush=True)
while True:
    compact(store, 400)
"""

APPEND_FOREVER = """
store, base = GenerationStore(sys.argv[1]), int(sys.argv[2])
for chunk in range(10_000):
    store.append(numbered(range(base + 10 * chunk, base + 10 * chunk + 10)))
    print(chunk, flush=True)
"""


def test_random_kills_while_others_append(store: GenerationStore) -> None:
    chance = random.Random(0)
    fill(store, 60)
    appenders = [child(APPEND_FOREVER, store.folder, base) for base in (100_000, 200_000)]
    for _ in range(8):
        with child(COMPACT_FOREVER, store.folder) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.5 * chance.random())
            process.kill()
    expected = set(range(600))
    for process, base in zip(appenders, (100_000, 200_000), strict=True):
        with process:
            process.kill()
            assert process.stdout is not None
            expected |= set(range(base, base + 10 * len(process.stdout.read().split())))
    wanted = [*range(600), *(base + n for base in (100_000, 200_000) for n in range(10_000))]
    found = set(answers(store, wanted))
    # The chunk that was in flight may or may not be there.
    assert expected <= found and len(found - expected) <= 20
    compact(store)
    stats = cache_stats(store)
    assert (stats.rows, stats.keys, stats.torn, stats.segments) == (len(found), len(found), 0, 1)
    assert set(answers(store, wanted)) == found


def test_a_damaged_note_is_told(store: GenerationStore, tmp_path: Path) -> None:
    fill(store, 2)
    for text, message in (("{", "not valid JSON"), ("[]", "is not as .* writes it"), ('{"old": 1}', "; delete it")):
        (store.parts.folder / REPLACED).write_text(text)
        with pytest.raises(ArtifactError, match=message):
            store.parts.names()
