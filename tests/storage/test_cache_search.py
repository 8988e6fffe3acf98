"""Finding one generation, with everything that its part says of it."""

from __future__ import annotations

import pytest
from generation_rows import key, numbered

from paraclip_core.errors import ArtifactError
from storage.cache_merge import compact
from storage.cache_tools import cache_stats, find_generation
from storage.generations import GenerationStore


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
