"""Finding one generation in the segments."""

from __future__ import annotations

from typing import Any

import pytest
from generation_rows import key, numbered

from paraclip_core.errors import ArtifactError
from storage.compaction import compact
from storage.generation_search import kept_under
from storage.generations import GenerationStore
from storage.segments import SegmentFolder


def test_segments_that_are_joined_while_they_are_searched_are_found(
    store: GenerationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for start in (0, 10, 20):
        store.append(numbered(range(start, start + 10)))
    refresh, names = store.refresh, SegmentFolder.names

    def joined_after_a_look(folder: SegmentFolder) -> list[str]:
        found = names(folder)
        monkeypatch.setattr(SegmentFolder, "names", names)
        compact(GenerationStore(store.folder))
        return found

    def look_next() -> None:
        refresh()
        monkeypatch.setattr(SegmentFolder, "names", joined_after_a_look)

    monkeypatch.setattr(store, "refresh", look_next)
    found: Any = kept_under(store, key(25))
    assert found.key == key(25)
    assert len(store.segments.names()) == 1


def test_a_segment_that_cannot_be_read_is_told(store: GenerationStore) -> None:
    store.append(numbered(range(10)))
    store.refresh()
    (name,) = store.segments.names()
    (store.segments.folder / name).write_bytes(b"no table")
    with pytest.raises(ArtifactError, match="cache verify"):
        kept_under(store, key(3))
