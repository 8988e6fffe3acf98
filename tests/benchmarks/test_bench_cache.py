"""The benchmark of the cache gets the same answers from both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def test_both_sides_miss_the_same_keys(records: Callable[..., dict[str, Any]]) -> None:
    recorded = records("bench_cache.py", "--rows", "2000", "--batch", "500", "--repeat", "1")
    assert set(recorded) == {"cache_insert_vs_sqlite", "cache_lookup_vs_sqlite"}
    assert all(line["ratio"] > 0 for line in recorded.values())
