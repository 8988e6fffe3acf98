"""Scattered numbers of a file, whatever windows they fall into."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from storage import mapped


@pytest.mark.parametrize("window", [8, 24, 1 << 20])
def test_numbers_at_any_places(tmp_path: Path, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "WINDOW_BYTES", window)
    np.arange(100, 120, dtype="<u8").tofile(tmp_path / "numbers")
    at = np.array([0, 1, 1, 7, 8, 19])
    assert mapped.gathered(tmp_path / "numbers", 20, at).tolist() == [100, 101, 101, 107, 108, 119]
    assert mapped.gathered(tmp_path / "numbers", 20, at[:0]).tolist() == []


def test_a_position_beyond_the_file_is_said(tmp_path: Path) -> None:
    np.arange(3, dtype="<u8").tofile(tmp_path / "numbers")
    for path, count, at in ((tmp_path / "numbers", 4, 1), (tmp_path / "numbers", 3, 3), (tmp_path / "none", 3, 0)):
        with pytest.raises(mapped.TornIndex):
            mapped.gathered(path, count, np.array([at]))
