"""Features of benchmarks' images: computed once, and again if they may differ or are damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paraclip.storage.benchmark_features import BenchmarkFeatures
from paraclip.storage.fingerprint import FileHashes

NAMES = ("a.jpg", "b.jpg")


def test_they_are_computed_once_and_again_if_anything_differs_or_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images, times = tmp_path / "images", 0
    images.mkdir()
    for name in NAMES:
        (images / name).write_text(name)

    def get(by: str = "encoder", names: tuple[str, ...] = NAMES, boxes: Any = None) -> np.ndarray:
        """Features that say how often they were computed."""

        def compute() -> np.ndarray:
            nonlocal times
            times += 1
            return np.full((len(names), 4), times, np.float16)

        keep = BenchmarkFeatures(tmp_path / "features", FileHashes(tmp_path / "hashes.json"))
        return keep(by, images, names, boxes, compute)

    first, again = get(), get()
    np.testing.assert_array_equal(first, again)
    assert (times, again.dtype, again.shape) == (1, np.float16, (2, 4))
    (file,) = (tmp_path / "features").iterdir()
    file.write_bytes(file.read_bytes()[:40])
    assert get()[0, 0] == 2 and "cannot be read" in caplog.text
    np.save(file, np.ones((1, 4), np.float16))
    assert get()[0, 0] == 3
    get("other encoder")
    get(names=NAMES[::-1])
    get(boxes=[(0, 0, 1, 1)] * 2)
    (images / "a.jpg").write_text("another picture")
    get()
    assert times == 7
