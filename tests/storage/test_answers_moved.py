"""Two caches become one; many small parts become few big ones, whatever is killed; what was paid is summed."""

from __future__ import annotations

import signal
from pathlib import Path

import pyarrow as pa
import pytest

from paraclip.storage import answers as module
from paraclip.storage.answers import AnswerStore, Merged
from paraclip_core.errors import ArtifactError
from tests.kit.generation_rows import answers, child, flip, key, numbered, rebuild, rows


@pytest.fixture
def theirs(tmp_path: Path) -> AnswerStore:
    return AnswerStore(tmp_path / "theirs")


def test_caches_merge_and_merging_twice_changes_nothing(store: AnswerStore, theirs: AnswerStore) -> None:
    store.append(numbered(range(5), "ours"))
    for numbers in (range(3, 8), range(8, 10), range(10, 12), range(3, 5)):
        theirs.append(numbered(numbers, "theirs"))
    # A key that they answered twice keeps its first answer.
    theirs.append(rows([(key(12), ["first"]), (key(12), ["second"])]))
    theirs.append(rows([(key(12), ["third"])]))
    flip(theirs.parts.folder / theirs.parts.names()[2])
    assert store.merge(theirs.folder) == Merged(new=6, known=6, damaged=1)
    merged = answers(store, range(20))
    with pytest.raises(ArtifactError, match="is not a cache folder"):
        store.merge(store.parts.folder)
    expected = {n: [f"ours {n}"] if n < 5 else [f"theirs {n}"] for n in range(10)}
    assert merged == expected | {12: ["first"]}
    before = store.parts.names()
    assert store.merge(theirs.folder) == Merged(new=0, known=12, damaged=1)
    assert store.parts.names() == before and answers(store, range(20)) == merged
    # What is damaged is their affair.
    assert (theirs.stats().segments, theirs.stats().damaged) == (5, 1)


def fill(store: AnswerStore, parts: int, size: int = 10, base: int = 0) -> None:
    for start in range(base, base + parts * size, size):
        store.append(numbered(range(start, start + size), f"text {start}"))


def test_small_parts_become_one(store: AnswerStore) -> None:
    assert store.compact() == (0, 0) and not store.folder.exists()
    fill(store, 20)
    before = answers(store, range(300)), store.stats()
    assert store.compact() == (20, 1)
    after = store.stats()
    assert (after.rows, after.keys, after.segments, after.groups) == (200, 200, 1, before[1].groups)
    assert [p.name for p in store.parts.folder.iterdir()] == store.parts.names()
    assert store.compact() == (1, 1)
    for _ in range(2):
        assert answers(store, range(300)) == before[0]
        rebuild(store)


def test_big_parts_are_left_alone_and_order_holds(store: AnswerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BIG_ROWS", 100)
    fill(store, 3)
    store.append(numbered(range(60), "big"))
    fill(store, 11, base=60)
    before, names = answers(store, range(200)), store.parts.names()
    assert store.compact() == (15, 4)
    assert names[3] in store.parts.names()
    assert answers(store, range(200)) == before
    assert [store.parts.open(name).metadata.num_rows for name in store.parts.names()] == [30, 60, 100, 10]


def test_columns_of_other_writers_stay_and_are_not_mixed(store: AnswerStore, theirs: AnswerStore) -> None:
    noted = [numbered([n]).append_column("note", pa.array([f"note {n}"])) for n in range(4)]
    for table in (*noted[:2], numbered([10]), numbered([11]), *noted[2:]):
        theirs.append(table)
    assert theirs.compact()[1] == 3
    store.merge(theirs.folder)
    for cache in (theirs, store):
        notes = cache.parts.open(cache.parts.names()[0]).read().column("note").to_pylist()
        assert notes[:2] == ["note 0", "note 1"]


KILL_AFTER = """
import pathlib
{function} = dying_after({deaths})({function})
AnswerStore(sys.argv[1]).compact()
"""


@pytest.mark.parametrize(
    ("function", "deaths"),
    [
        ("pathlib.Path.unlink", 6),
        *(
            pytest.param(function, 0, marks=pytest.mark.nightly)
            for function in ("PartFolder.draft", "PartFolder.publish", "pathlib.Path.unlink")
        ),
    ],
)
def test_killed_at_every_step(store: AnswerStore, function: str, deaths: int) -> None:
    fill(store, 11)
    before = answers(store, range(200))
    with child(KILL_AFTER.format(function=function, deaths=deaths), store.folder) as process:
        assert process.wait(120) == -signal.SIGKILL
    store.append(numbered(range(500, 510)))
    assert answers(store, range(200)) == before
    assert (store.stats().keys, store.stats().damaged, store.paid_tokens("file", "m")) == (120, 0, (360, 480))
    store.compact()
    assert (store.stats().rows, store.stats().keys, store.stats().segments) == (120, 120, 1)
    assert answers(store, range(200)) == before


def test_tokens_of_one_engine_and_model_are_summed_but_for_what_was_imported(
    store: AnswerStore, theirs: AnswerStore
) -> None:
    assert store.paid_tokens("file", "m") == (0, 0)
    store.append(numbered(range(10)))
    store.append(numbered(range(30, 33), model="third"))
    theirs.append(numbered(range(5, 20)))
    theirs.append(numbered(range(20, 22), model="other"))
    for _ in range(2):
        store.merge(theirs.folder)
        assert store.paid_tokens("file", "m") == (30, 40), "rows have 3 and 4 tokens"
        assert store.paid_tokens("file", "other") == store.paid_tokens("openai", "m") == (0, 0)
        assert store.paid_tokens("file", "third") == (9, 12)
    store.append(numbered(range(40, 41)))
    store.compact()
    assert store.paid_tokens("file", "m") == (33, 44)
