"""Scattered numbers of a file, whatever windows they fall into."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from storage import mapped


@pytest.mark.parametrize("window", [8, 24, 1 << 20])
@pytest.mark.parametrize(("stride", "width"), [(1, 1), (1, 2), (3, 4)])
def test_numbers_at_any_places(
    tmp_path: Path, window: int, stride: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "WINDOW_BYTES", window)
    count = 19 * stride + width
    np.arange(100, 100 + count, dtype="<u8").tofile(tmp_path / "numbers")
    at = np.array([0, 1, 1, 7, 8, 19])
    found = mapped.gathered(tmp_path / "numbers", count, at, stride, width)
    assert found.tolist() == [(100 + stride * at + turn).tolist() for turn in range(width)]
    assert mapped.gathered(tmp_path / "numbers", count, at[:0], stride, width).shape == (width, 0)


def test_big_pages_change_nothing(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 64, 1 << 19, np.uint64)
    values.tofile(tmp_path / "numbers")
    for touches in (0, len(values)):
        assert (mapped.mapped(tmp_path / "numbers", "<u8", 24, len(values) - 3, touches) == values[3:]).all()


def test_a_position_beyond_the_file_is_said(tmp_path: Path) -> None:
    np.arange(3, dtype="<u8").tofile(tmp_path / "numbers")
    numbers, none = tmp_path / "numbers", tmp_path / "none"
    for path, count, at, width in ((numbers, 4, 1, 1), (numbers, 3, 3, 1), (numbers, 3, 2, 2), (none, 3, 0, 1)):
        with pytest.raises(mapped.TornIndex):
            mapped.gathered(path, count, np.array([at]), 1, width)
