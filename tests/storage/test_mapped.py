"""Scattered numbers of a file, whatever windows they fall into."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from storage import mapped
from storage.mapped import MappedFile, TornIndex


@pytest.mark.parametrize("window", [8, 24, 1 << 20])
@pytest.mark.parametrize(("stride", "width"), [(1, 1), (1, 2), (3, 4)])
def test_numbers_at_any_places(
    tmp_path: Path, window: int, stride: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "WINDOW_BYTES", window)
    count = 19 * stride + width
    np.arange(100, 100 + count, dtype="<u8").tofile(tmp_path / "numbers")
    at = np.array([0, 1, 1, 7, 8, 19])
    file = MappedFile(tmp_path / "numbers", "<u8", count)
    for _ in range(2):
        found = file.gathered(at, stride, width)
        assert found.tolist() == [(100 + stride * at + turn).tolist() for turn in range(width)]
    assert file.gathered(at[:0], stride, width).shape == (width, 0)


@pytest.mark.parametrize("dtype", ["u1", "<u8"])
def test_windows_in_any_order_have_the_numbers_between(tmp_path: Path, dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 255, 1 << 17, dtype)
    values.tofile(tmp_path / "numbers")
    file = MappedFile(tmp_path / "numbers", dtype, len(values) - 3)
    for touches in (0, len(values)):
        for start, stop in ((0, 5), (0, 99_999), (70_001, 1 << 30), (3, 3), (5, 70_002), (1 << 20, 1 << 21), (0, 5)):
            assert (file.window(start, stop, touches) == values[:-3][start:stop]).all()


def resident() -> int:
    """Bytes of mapped files that count as this process's own."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile")]
    return 1024 * int(line.split()[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see what is resident")
def test_one_window_at_a_time_is_resident(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "WINDOW_BYTES", 4 << 20)
    count = 8 << 20
    np.zeros(count, "<u8").tofile(tmp_path / "numbers")
    before = resident()
    file = MappedFile(tmp_path / "numbers", "<u8", count)
    file.gathered(np.arange(0, count, 64), 1, 1)
    assert resident() - before < 12 << 20
    file.numbers[::64].sum()
    assert resident() - before > 60 << 20


def test_a_position_beyond_the_file_is_said(tmp_path: Path) -> None:
    np.arange(3, dtype="<u8").tofile(tmp_path / "numbers")
    for name, count in (("numbers", 4), ("none", 3)):
        with pytest.raises(TornIndex):
            MappedFile(tmp_path / name, "<u8", count)
    file = MappedFile(tmp_path / "numbers", "<u8", 3)
    for at, width in ((3, 1), (2, 2)):
        with pytest.raises(TornIndex):
            file.gathered(np.array([at]), 1, width)
