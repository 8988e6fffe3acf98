"""Sorted runs: every row of a key is found, whatever was joined, however the windows fall."""

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

HALVES = st.integers(0, 5) | st.sampled_from([2**63, 2**64 - 2, 2**64 - 1])
KEYS = st.lists(st.tuples(HALVES, st.integers(0, 2)), max_size=12)


def columns(keys: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    array = np.array(keys, np.uint64).reshape(-1, 2)
    return array[:, 0].copy(), array[:, 1].copy()


def found(folder: Path, runs: list[Run], keys: list[tuple[int, int]]) -> set[tuple[int, int, int]]:
    asked = sorted(keys)
    positions, places = key_runs.find(folder, runs, *columns(asked))
    assert len(positions) == len(places)
    return {(*asked[at], place) for at, place in zip(positions.tolist(), places.tolist(), strict=True)}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=st.lists(KEYS, max_size=5), window=st.integers(1, 6), block=st.integers(1, 4))
def test_every_row_of_a_key_is_found(
    groups: list[list[tuple[int, int]]], window: int, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_runs, "WINDOW_ROWS", window)
    monkeypatch.setattr(key_runs, "JOIN_ROWS", window)
    monkeypatch.setattr(key_runs, "BLOCK", block)
    runs: list[Run] = []
    there: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    place = 0
    for number, keys in enumerate(groups):
        runs.append(key_runs.write(tmp_path, number, *columns(keys), place))
        for row, key in enumerate(keys, place):
            there[key].append(row)
        place += len(keys)
    asked: list[tuple[int, int]] = sorted({*there, (3, 1), (2**64 - 1, 2)})
    expected = {(*key, row) for key in asked for row in there.get(key, [])}
    assert found(tmp_path, runs, asked) == expected
    joined = key_runs.join(tmp_path, runs, 99)
    assert joined.rows == place
    assert found(tmp_path, [joined], asked) == expected
    assert sum(len(hi) for hi, _, _ in key_runs.checked(tmp_path, joined)) == place


def test_there_are_few_runs_and_each_row_is_written_few_times() -> None:
    runs: list[Run] = []
    written = 0
    for number in range(1000):
        runs.append(Run(number, 500, 1))
        written += 500
        if due := key_runs.due(runs):
            size = sum(run.rows for run in due)
            runs = [run for run in runs if run not in due] + [Run(10_000 + number, size, 1)]
            written += size
        assert len(runs) <= 16
    assert sum(run.rows for run in runs) == 500_000
    assert written <= 7 * 500_000


def test_files_that_are_no_run_are_swept(tmp_path: Path) -> None:
    runs = [key_runs.write(tmp_path, number, *columns([(number, 0)]), number) for number in range(3)]
    (tmp_path / "texts.bin").write_bytes(b"")
    key_runs.sweep(tmp_path, runs[1:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-1.keys", "run-2.keys", "texts.bin"]


def test_a_short_or_missing_file_is_said(tmp_path: Path) -> None:
    run = key_runs.write(tmp_path, 1, *columns([(1, 0), (2, 0)]), 0)
    path = tmp_path / "run-1.keys"
    path.write_bytes(path.read_bytes()[: 16 * 2 + 5])
    for damaged in (lambda: path.touch(), path.unlink):
        damaged()
        with pytest.raises(TornIndex):
            found(tmp_path, [run], [(2, 0)])
        with pytest.raises(TornIndex):
            key_runs.join(tmp_path, [run], 2)
        with pytest.raises(TornIndex):
            list(key_runs.checked(tmp_path, run))


def test_rows_are_counted_in_32_bits(tmp_path: Path) -> None:
    with pytest.raises(OverflowError, match="4294967297 rows"):
        key_runs.write(tmp_path, 1, *columns([(1, 0)]), 1 << 32)
