"""Two caches become one, and a part of one another."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from generation_rows import answers, flip, key, numbered, rows

from paraclip_core.errors import ArtifactError
from storage import cache_merge
from storage.cache_merge import Merged, compact, merge
from storage.cache_tools import cache_stats, paid_tokens
from storage.generations import GENERATIONS, GenerationStore
from storage.parts import PartFolder


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


def test_an_empty_cache_takes_the_same_files_in_the_same_order(ours: GenerationStore, theirs: GenerationStore) -> None:
    for start in (0, 5, 3):
        theirs.append(numbered(range(start, start + 5), f"text {start}"))
    assert merge(ours, theirs.folder) == Merged(segments=3, new=15, known=0, unwanted=0, damaged=0)
    assert ours.parts.names() == theirs.parts.names()
    assert not ours.file.path.exists()
    assert answers(ours, range(20)) == answers(theirs, range(20))


def test_memory_is_bounded_by_comparing_in_groups(
    ours: GenerationStore, theirs: GenerationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_merge, "COMPARED_ROWS", 25)
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
        ({"engine": "smollm2"}, set()),
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
    (name,) = ours.parts.names()
    assert ours.parts.read_bytes(name) == theirs.parts.read_bytes(theirs.parts.names()[0])


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
