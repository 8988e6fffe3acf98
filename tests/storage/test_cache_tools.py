"""What was paid for a cache is summed, whatever was imported, joined or damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from generation_rows import numbered

from paraclip.storage.cache_merge import compact, merge
from paraclip.storage.cache_tools import paid_tokens
from paraclip.storage.generations import GenerationStore
from paraclip.storage.parts import PartFolder, TornPart
from paraclip_core.errors import ArtifactError


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
    with pytest.raises(ArtifactError, match=f"cannot read .*{name}.*; delete it"):
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
