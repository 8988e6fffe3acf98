"""What a whole cache holds: one generation is found, damage is found and mended, what was paid is summed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from generation_rows import answers, flip, judged, key, numbered, verdicts

from paraclip.storage.cache_merge import compact, merge
from paraclip.storage.cache_tools import Verified, cache_stats, find_generation, paid_tokens, verify_cache
from paraclip.storage.generations import GenerationStore
from paraclip.storage.parts import PartFolder, TornPart
from paraclip_core.errors import ArtifactError

# Searching


def test_a_generation_is_found_wherever_its_row_lies(store: GenerationStore) -> None:
    assert find_generation(store, key(25)) is None
    for start in (0, 10, 20):
        store.append(numbered(range(start, start + 10)))
    store.append(numbered(range(20, 30), "second"))
    for _ in range(2):
        generation = find_generation(store, key(25))
        assert generation is not None
        assert (generation["key"], generation["completions"], generation["step"]) == (key(25), ["answer 25"], 1)
        compact(store)
    assert find_generation(store, key(30)) is None


def test_a_segment_that_cannot_be_read_is_told(store: GenerationStore) -> None:
    store.append(numbered(range(10)))
    store.refresh()
    (name,) = store.parts.names()
    (store.parts.folder / name).write_bytes(b"no table")
    for look in (lambda: find_generation(store, key(3)), lambda: cache_stats(store)):
        with pytest.raises(ArtifactError, match="cache verify"):
            look()


# Verifying


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


# Spending


def test_tokens_of_one_engine_and_model_are_summed(store: GenerationStore) -> None:
    assert paid_tokens(store.folder, "file", "m") == (0, 0)
    store.append(numbered(range(10)))
    store.append(numbered(range(5, 10), text="again"))
    store.append(numbered(range(10, 13), model="other"))
    # Rows have 3 and 4 tokens; what was answered twice was paid for twice.
    assert paid_tokens(store.folder, "file", "m") == (45, 60)
    assert paid_tokens(store.folder, "file", "other") == (9, 12)
    assert paid_tokens(store.folder, "openai", "m") == (0, 0)


def test_segments_that_cannot_be_read_do_not_count(store: GenerationStore) -> None:
    store.append(numbered(range(10)))
    store.append(numbered(range(10, 12)))
    first, second = sorted((store.folder / "segments").glob("*.parquet"))
    first.write_bytes(first.read_bytes()[:100])
    assert paid_tokens(store.folder, "file", "m") == (6, 8)
    # Some other program's table.
    pq.write_table(pa.table({"x": [1]}), second)
    assert paid_tokens(store.folder, "file", "m") == (0, 0)


def test_a_segment_that_is_not_there_is_told(store: GenerationStore) -> None:
    store.append(numbered(range(10)))
    (name,) = store.parts.names()
    (store.parts.folder / name).unlink()
    (store.parts.folder / name).symlink_to("nothing")
    with pytest.raises(ArtifactError, match=f"cannot read .*{name}.*cache verify"):
        paid_tokens(store.folder, "file", "m")


def test_what_is_joined_while_it_is_counted_counts_once(
    store: GenerationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for start in (0, 10, 20):
        store.append(numbered(range(start, start + 10)))
    read, joined = pq.read_table, []

    def slow(*given: Any, **options: Any) -> pa.Table:
        if not joined:
            joined.append(True)
            with monkeypatch.context() as patched:
                patched.setattr(pq, "read_table", read)
                compact(store)
        return read(*given, **options)

    monkeypatch.setattr(pq, "read_table", slow)
    assert paid_tokens(store.folder, "file", "m") == (90, 120)
    assert len(store.parts.names()) == 1


def test_a_compaction_that_was_killed_halfway_doubles_nothing(
    store: GenerationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for start in (0, 10):
        store.append(numbered(range(start, start + 10)))

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PartFolder, "_unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        compact(store)
    assert len(list(store.parts.folder.glob("*.parquet"))) == 3
    assert paid_tokens(store.folder, "file", "m") == (60, 80)


def test_what_was_imported_is_not_paid_for(store: GenerationStore, tmp_path: Path) -> None:
    theirs = GenerationStore(tmp_path / "theirs")
    store.append(numbered(range(10)))
    theirs.append(numbered(range(5, 20)))
    theirs.append(numbered(range(20, 22), model="other"))
    for _ in range(2):
        merge(store, theirs.folder)
        assert paid_tokens(store.folder, "file", "m") == (30, 40)
        assert paid_tokens(store.folder, "file", "other") == (0, 0)
    store.append(numbered(range(30, 31)))
    compact(store)
    assert paid_tokens(store.folder, "file", "m") == (33, 44)
    for text in ("{", "[]", '{"file": 3}', '{"file": {"m": 3}}', '{"file": {"m": {"": ["x", 1]}}}'):
        (store.folder / "imported.json").write_text(text)
        assert paid_tokens(store.folder, "file", "m") == (63, 84), "what cannot be read counts as paid"


@pytest.mark.parametrize("joined", [False, True])
def test_what_was_imported_and_is_gone_hides_nothing_that_is_paid_for(
    joined: bool, store: GenerationStore, tmp_path: Path
) -> None:
    theirs = GenerationStore(tmp_path / "theirs")
    for start in (0, 10):
        theirs.append(numbered(range(start, start + 10)))
    for _ in range(3):
        merge(store, theirs.folder)
        if joined:
            compact(store)
        assert paid_tokens(store.folder, "file", "m") == (0, 0)
        for name in store.parts.names():
            store.parts.set_aside(TornPart(name, "torn"))
        store.refresh()
    store.append(numbered(range(20, 25)))
    assert paid_tokens(store.folder, "file", "m") == (15, 20)


def test_two_imports_at_once_are_one(store: GenerationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = GenerationStore(tmp_path / "theirs")
    theirs.append(numbered(range(10)))
    read, begun = PartFolder.read, []

    def meanwhile(folder: PartFolder, name: str) -> pa.Table:
        if not begun:
            begun.append(True)
            merge(GenerationStore(store.folder), theirs.folder)
        return read(folder, name)

    monkeypatch.setattr(PartFolder, "read", meanwhile)
    merge(store, theirs.folder)
    store.append(numbered(range(20, 25)))
    assert paid_tokens(store.folder, "file", "m") == (15, 20)


def test_what_says_nothing_of_tokens_is_imported_and_costs_nothing(store: GenerationStore, tmp_path: Path) -> None:
    theirs = GenerationStore(tmp_path / "theirs")
    table = numbered(range(3))
    for name in ("prompt_tokens", "completion_tokens"):
        column = table.schema.field(name).with_nullable(True)
        table = table.drop_columns([name]).append_column(column, pa.nulls(3, column.type))
    theirs.append(table)
    theirs.append(numbered(range(3, 6)).drop_columns(["prompt_tokens", "completion_tokens"]))
    assert merge(store, theirs.folder).new == 6
    store.append(numbered(range(20, 22)))
    assert paid_tokens(store.folder, "file", "m") == (6, 8)
