"""`paraclip cache`: what each command says, counts and ends with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from paraclip.storage.answers import AnswerStore
from paraclip_core.tables import GENERATIONS


def fill(root: Path, numbers: Iterable[int], segments: int = 1, **same: Any) -> AnswerStore:
    """Generations with numbered keys, in so many segments."""
    store = AnswerStore(root / "cache")
    filled = {"step": 1, "attempt": 0, "input": "a dog", "engine": "file", "model": "file:1", "prompt": "paper/1"}
    filled |= {"prompt_hash": bytes(16), "sampling": "{}", "seed": 0, "prompt_tokens": 3, "completion_tokens": 4}
    keys = [hashlib.blake2b(str(number).encode(), digest_size=16).digest() for number in numbers]
    table = pa.Table.from_pylist(
        [filled | {"key": key, "completions": ["x"]} | same for key in keys], schema=GENERATIONS
    )
    size = -(-len(keys) // segments)
    for start in range(0, len(keys), size):
        store.append(table.slice(start, size))
    return store


def damage(store: AnswerStore, at: int) -> str:
    name = store.parts.names()[at]
    os.truncate(store.parts.folder / name, 100)
    return name


def test_export_and_import_count_new_known_and_damaged(tmp_path: Path, cli: Any) -> None:
    ours, theirs, exported = tmp_path / "ours", tmp_path / "theirs", tmp_path / "exported"
    store = fill(theirs, range(100), segments=5)
    fill(ours, range(10))
    arguments = ["cache", "export", str(exported), "--root", str(theirs)]
    assert cli.json(arguments) == {"new": 100, "known": 0, "damaged": 0}
    assert cli.json(arguments)["known"] == 100
    arguments = ["cache", "import", str(exported), "--root", str(ours)]
    assert cli.json(arguments) == {"new": 90, "known": 10, "damaged": 0}
    assert "0 new answers, 100 known" in cli(arguments).out
    assert cli.json(["cache", "stats", "--root", str(ours)])["keys"] == 100
    damage(store, 2)
    # A whole root's cache is a folder to import from, too.
    arguments = ["cache", "import", str(theirs / "cache"), "--root", str(tmp_path / "new")]
    assert "1 parts are damaged" in cli(arguments, code=1).out
    assert cli.json(["cache", "stats", "--root", str(tmp_path / "new")])["keys"] == 80


def test_compact(tmp_path: Path, cli: Any) -> None:
    store = fill(tmp_path, range(100), segments=10)
    damage(store, 3)
    assert "10 parts before, 1 now" in cli(["cache", "compact", "--root", str(tmp_path)]).out
    stats = cli.json(["cache", "stats", "--root", str(tmp_path)])
    assert (stats["keys"], stats["segments"], stats["damaged"], stats["verdicts"]) == (90, 1, 1, 0)
    assert cli(["cache", "stats", "--root", str(tmp_path)]).out.startswith("rows: 90\nkeys: 90\n")
