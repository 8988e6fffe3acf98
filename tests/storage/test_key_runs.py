"""Runs: every row whose key may be the one is found, whatever was joined, however the windows and blocks fall."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import key_runs
from storage.key_runs import Run
from storage.mapped import TornIndex

# Many that begin alike, the first and the last there can be, and what is between.
STARTS = st.integers(0, 5) | st.sampled_from([2**31, 2**32 - 2, 2**32 - 1]) | st.integers(0, 2**32 - 1)
KEYS = st.lists(STARTS, max_size=14)


def upper(starts: list[int]) -> np.ndarray:
    """Keys with these first 32 bits, and some others behind."""
    return np.array([start << 32 | (7 * row) for row, start in enumerate(starts)], np.uint64)


def found(folder: Path, runs: list[Run], starts: list[int]) -> list[tuple[int, int]]:
    numbers, rows = key_runs.find(folder, runs, key_runs.entries(upper(starts)))
    assert len(numbers) == len(rows)
    assert (np.diff(rows) >= 0).all()
    return sorted((starts[number], row) for number, row in zip(numbers.tolist(), rows.tolist(), strict=True))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=st.lists(KEYS, max_size=5), window=st.integers(1, 6), block=st.integers(1, 4), absent=KEYS)
def test_every_row_of_a_key_is_found(
    groups: list[list[int]], window: int, block: int, absent: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_runs, "WINDOW_SLOTS", window)
    monkeypatch.setattr(key_runs, "JOIN_ROWS", window)
    monkeypatch.setattr(key_runs, "BLOCK", block)
    runs: list[Run] = []
    there: defaultdict[int, list[int]] = defaultdict(list)
    place = 0
    for number, starts in enumerate(groups):
        runs.append(key_runs.write(tmp_path, number, upper(starts), place))
        for row, start in enumerate(starts, place):
            there[start].append(row)
        place += len(starts)
    asked = sorted({*there, *absent})
    expected = sorted((start, row) for start in asked for row in there.get(start, []))
    assert found(tmp_path, runs, asked) == expected
    joined = key_runs.join(tmp_path, runs, 99)
    assert joined.rows == place
    assert found(tmp_path, [joined], asked) == expected
    for run in [*runs, joined]:
        pieces = [zip(*map(np.ndarray.tolist, piece), strict=True) for piece in key_runs.checked(tmp_path, run)]
        rows = [row for piece in pieces for row in piece]
        assert len(rows) == run.rows
        assert {row for _, row in rows} <= {row for _, row in expected}
        assert all(row in there[start] for start, row in rows)


def test_joining_gives_the_bytes_of_sorting_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_runs, "JOIN_ROWS", 100)
    hi = np.random.default_rng(0).integers(0, 1 << 64, 2000, np.uint64)
    runs = [key_runs.write(tmp_path, number, hi[500 * number :][:500], 500 * number) for number in range(4)]
    joined, whole = key_runs.join(tmp_path, runs, 8), key_runs.write(tmp_path, 9, hi, 0)
    assert joined == whole._replace(number=8)
    assert (tmp_path / "run-8.keys").read_bytes() == (tmp_path / "run-9.keys").read_bytes()


def test_a_key_is_near_where_it_should_be(tmp_path: Path) -> None:
    run = key_runs.write(tmp_path, 1, np.random.default_rng(0).integers(0, 1 << 64, 200_000, np.uint64), 0)
    assert run.reach < 40
    assert abs(run.slots - 400_000) < 100


@pytest.mark.parametrize("slot", range(6))
def test_any_changed_slot_is_noticed(tmp_path: Path, slot: int) -> None:
    run = key_runs.write(tmp_path, 1, upper([0, 1 << 30, 3 << 30]), 0)
    assert run.slots == 5
    path = tmp_path / "run-1.keys"
    entries = np.fromfile(path, "<u8")
    for value in (0, int(entries[slot % 5]) + (1 << 62), 2**64 - 1):
        changed = entries.copy()
        changed[slot % 5] = value % 2**64
        if (changed == entries).all():
            continue
        changed.tofile(path)
        with pytest.raises(TornIndex):
            list(key_runs.checked(tmp_path, run))


def test_there_are_few_runs_and_each_row_is_written_few_times() -> None:
    runs: list[Run] = []
    written = 0
    for number in range(1000):
        runs.append(Run(number, 500, 1000, 1))
        written += 500
        if due := key_runs.due(runs):
            size = sum(run.rows for run in due)
            runs = [run for run in runs if run not in due] + [Run(10_000 + number, size, 2 * size, 1)]
            written += size
        assert len(runs) <= 10
    assert sum(run.rows for run in runs) == 500_000
    assert written <= 8 * 500_000


def test_files_that_are_no_run_are_swept(tmp_path: Path) -> None:
    runs = [key_runs.write(tmp_path, number, upper([number]), number) for number in range(3)]
    (tmp_path / "texts.bin").write_bytes(b"")
    key_runs.sweep(tmp_path, runs[1:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-1.keys", "run-2.keys", "texts.bin"]


def test_a_short_or_missing_file_is_said(tmp_path: Path) -> None:
    run = key_runs.write(tmp_path, 1, upper([1, 1 << 31]), 0)
    path = tmp_path / "run-1.keys"
    path.write_bytes(path.read_bytes()[:-3])
    for damaged in (lambda: path.touch(), path.unlink):
        damaged()
        with pytest.raises(TornIndex):
            found(tmp_path, [run], [1 << 31])
        with pytest.raises(TornIndex):
            key_runs.join(tmp_path, [run], 2)
        with pytest.raises(TornIndex):
            list(key_runs.checked(tmp_path, run))


def test_rows_are_counted_in_32_bits(tmp_path: Path) -> None:
    with pytest.raises(OverflowError, match="4294967297 rows"):
        key_runs.write(tmp_path, 1, upper([1]), 1 << 32)
