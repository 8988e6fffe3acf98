"""The index's rows: what was appended comes back to the byte, and an unfinished append is written over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import answer_file, mapped
from storage.answer_file import AnswerFile, Filled
from storage.mapped import TornIndex

KIND = pa.list_(pa.string())
ROWS = st.lists(st.lists(st.none() | st.text(st.characters(codec="utf-8"), max_size=6), max_size=3), max_size=8)


def chunked(*parts: list) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(part, KIND) for part in parts], KIND)


def keys(start: int, count: int) -> np.ndarray:
    return np.arange(2 * start, 2 * (start + count), dtype=np.uint64).reshape(-1, 2)


def append(file: AnswerFile, completions: pa.ChunkedArray, filled: Filled) -> Filled:
    """With keys that say the rows' numbers."""
    return file.append(keys(filled.rows, len(completions)), completions, filled)


def taken(file: AnswerFile, rows: list[int], filled: Filled) -> list:
    values = []
    found = file.rows(np.array(rows, np.int64), filled)
    for start, lists in file.take(found, filled):
        assert start == len(values)
        values += lists.to_pylist()
    assert found.keys.tolist() == [[2 * row, 2 * row + 1] for row in rows]
    return values


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    appended=st.lists(ROWS, max_size=4),
    chosen=st.sets(st.integers(0, 31)),
    window=st.sampled_from([8, 16, 64, 1 << 20]),
)
def test_any_rows_come_back(
    appended: list, chosen: set, window: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (answer_file, mapped):
        monkeypatch.setattr(module, "WINDOW_BYTES", window)
    monkeypatch.setattr(answer_file, "BLOCK", 3)
    file, filled, model = AnswerFile(tmp_path_factory.mktemp("answers")), Filled(), []
    for rows in appended:
        # An append that was never finished leaves its traces behind what is filled.
        append(file, chunked([["unfinished", None]] * 3), filled)
        # A slice begins in the middle of its buffers.
        filled = append(file, chunked([["before"], *rows]).slice(1), filled)
        model += rows
    assert filled.rows == len(model)
    wanted = sorted(row for row in chosen if row < len(model))
    assert taken(file, wanted, filled) == [model[row] for row in wanted]


def test_chunks_and_nothing(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path)
    filled = append(file, chunked([["a"]], [], [["b", "c"], []]), Filled())
    assert filled == (3, 3, 3)
    assert append(file, chunked(), filled) == filled
    assert taken(file, [0, 1, 2], filled) == [["a"], ["b", "c"], []]
    assert taken(file, [], filled) == []


def small(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def wild(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize("name", ["rows.u64", "strings.u64", "texts.bin"])
@pytest.mark.parametrize("damage", [small, wild, Path.unlink])
def test_damage_is_said(tmp_path: Path, name: str, damage) -> None:  # noqa: ANN001
    file = AnswerFile(tmp_path)
    filled = append(file, chunked([["one"], ["two"]]), Filled())
    damage(tmp_path / name)
    with pytest.raises(TornIndex):
        taken(file, [0, 1], filled)
    if damage is not wild:
        with pytest.raises(TornIndex, match="is shorter than"):
            append(file, chunked([["three"]]), filled)
