"""`paraclip cache`: what each command says, counts and ends with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from paraclip.flows.cli import run_cli
from paraclip.storage.answers import AnswerStore
from paraclip_core.tables import GENERATIONS

Capture = pytest.CaptureFixture[str]


def told(capsys: Capture, arguments: Sequence[str], code: int = 0) -> Any:
    """Run a command with --json and read its one document."""
    assert run_cli(["cache", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def said(capsys: Capture, arguments: Sequence[str], code: int = 0) -> str:
    assert run_cli(["cache", *arguments]) == code
    return capsys.readouterr().out


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


def test_export_and_import_count_new_known_and_damaged(tmp_path: Path, capsys: Capture) -> None:
    ours, theirs, exported = tmp_path / "ours", tmp_path / "theirs", tmp_path / "exported"
    store = fill(theirs, range(100), segments=5)
    fill(ours, range(10))
    arguments = ["export", str(exported), "--root", str(theirs)]
    assert told(capsys, arguments) == {"new": 100, "known": 0, "damaged": 0}
    assert told(capsys, arguments)["known"] == 100
    arguments = ["import", str(exported), "--root", str(ours)]
    assert told(capsys, arguments) == {"new": 90, "known": 10, "damaged": 0}
    assert "0 new answers, 100 known" in said(capsys, arguments)
    assert told(capsys, ["stats", "--root", str(ours)])["keys"] == 100
    damage(store, 2)
    # A whole root's cache is a folder to import from, too.
    arguments = ["import", str(theirs / "cache"), "--root", str(tmp_path / "new")]
    assert "1 parts are damaged" in said(capsys, arguments, code=1)
    assert told(capsys, ["stats", "--root", str(tmp_path / "new")])["keys"] == 80


def test_compact(tmp_path: Path, capsys: Capture) -> None:
    store = fill(tmp_path, range(100), segments=10)
    damage(store, 3)
    assert "10 parts before, 1 now" in said(capsys, ["compact", "--root", str(tmp_path)])
    stats = told(capsys, ["stats", "--root", str(tmp_path)])
    assert (stats["keys"], stats["segments"], stats["damaged"], stats["verdicts"]) == (90, 1, 1, 0)
    assert said(capsys, ["stats", "--root", str(tmp_path)]).startswith("rows: 90\nkeys: 90\n")
