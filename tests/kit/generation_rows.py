"""Generations with numbered keys, and children that use them; shared by the tests of the answers cache."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa

from paraclip.storage.answers import AnswerStore
from paraclip_core.tables import FILTER_RESULTS, GENERATIONS

CHILD = """
import os, random, signal, sys, time
import duckdb
from tests.kit.generation_rows import *
from paraclip.storage import answers as module, parts
from paraclip.storage.answers import AnswerStore, CacheFile
from paraclip.storage.parts import PartFolder
"""


def key(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def keys(numbers: Iterable[int]) -> pa.FixedSizeBinaryArray:
    return pa.array([key(n) for n in numbers], pa.binary(16))


def rows(answers: Sequence[tuple[bytes, list[str | None]]], step: int = 1, model: str = "m") -> pa.Table:
    filled = {"step": step, "attempt": 0, "input": "a dog", "engine": "file", "model": model, "prompt": "paper"}
    filled |= {"prompt_hash": bytes(16), "sampling": "{}", "seed": 0, "prompt_tokens": 3, "completion_tokens": 4}
    return pa.Table.from_pylist([filled | {"key": k, "completions": c} for k, c in answers], schema=GENERATIONS)


def numbered(numbers: Iterable[int], text: str = "answer", **same: object) -> pa.Table:
    return rows([(key(n), [f"{text} {n}"]) for n in numbers], **same)  # type: ignore[arg-type]


def filter_results(numbers: Iterable[int], text: str = "answer", filters: int = 0) -> pa.Table:
    """Filter results of numbered generations; every third was rejected."""
    rows = []
    for n in numbers:
        accepted = [{"answer": f"{text} {n}", "tokens": [n % 65_536, 2], "similarity": None if n % 2 else 0.5}]
        rejected = {"answer": f"{text} {n}", "reason": "echo", "detail": "", "similarity": 1.0}
        row = {"generation": key(n), "parent": bytes(16), "filters": key(filters)}
        rows.append(row | ({"accepted": [], **rejected} if n % 3 == 0 else {"accepted": accepted}))
    return pa.Table.from_pylist(rows, schema=FILTER_RESULTS)


def filtered(store: AnswerStore) -> list[dict[str, object]]:
    """All filter results of the cache, by generation."""
    with store.tables() as con:
        query = f"SELECT {', '.join(FILTER_RESULTS.names)} FROM cache.filter_results ORDER BY generation, filters"
        return con.sql(query).to_arrow_table().cast(FILTER_RESULTS).to_pylist()


def answers(store: AnswerStore, numbers: Iterable[int]) -> dict[int, list[str]]:
    """What the cache answers to numbered keys, in the order of the numbers."""
    wanted = list(numbers)
    table = store.lookup(keys(wanted))
    completions = dict(zip(table.column("key").to_pylist(), table.column("completions").to_pylist(), strict=True))
    assert len(completions) == table.num_rows
    return {n: completions[key(n)] for n in wanted if key(n) in completions}


def rebuild(store: AnswerStore) -> None:
    """Delete the DuckDB file and rebuild it, as anyone may at any time."""
    store.file.delete()
    store.refresh()


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    program = CHILD + code
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )


def die(*_: object, **__: object) -> None:
    """End this process as a kill does."""
    os.kill(os.getpid(), signal.SIGKILL)


def dying_after(calls: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function kill its process at its end, after it was called `calls` times before."""

    def after(original: Callable[..., Any]) -> Callable[..., Any]:
        numbers = count()

        def call(*arguments: Any, **named: Any) -> Any:
            value = original(*arguments, **named)
            if next(numbers) >= calls:
                die()
            return value

        return call

    return after


def flip(path: Path) -> None:
    """Damage a file in its middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Truncate a file."""
    path.write_bytes(path.read_bytes()[:-20])
