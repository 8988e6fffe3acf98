"""Features of benchmarks' images: computed once, and again if they may differ or are damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paraclip.storage.benchmark_features import BenchmarkFeatures
from paraclip.storage.fingerprint import FileHashes

NAMES = ("a.jpg", "b.jpg")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_text(name)
    return folder


class Counted:
    """Features that say how often they were computed."""

    def __init__(self, root: Path) -> None:
        self.times, self._root = 0, root

    def get(self, archive: Path, names=NAMES, boxes=None, by: str = "encoder") -> np.ndarray:  # noqa: ANN001
        def compute() -> np.ndarray:
            self.times += 1
            return np.full((len(names), 4), self.times, np.float16)

        keep = BenchmarkFeatures(self._root / "features", FileHashes(self._root / "hashes.json"))
        return keep(by, archive, names, boxes, compute)


def test_they_are_computed_once_and_again_if_anything_differs_that_they_depend_on(tmp_path: Path, images: Path) -> None:
    counted = Counted(tmp_path)
    first, again = counted.get(images), counted.get(images)
    np.testing.assert_array_equal(first, again)
    assert (counted.times, again.dtype, again.shape) == (1, np.float16, (2, 4))
    counted.get(images, by="other encoder")
    counted.get(images, names=NAMES[::-1])
    counted.get(images, boxes=[(0, 0, 1, 1)] * 2)
    (images / "a.jpg").write_text("another picture")
    counted.get(images)
    assert counted.times == 5


def test_a_damaged_file_is_made_again(tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture) -> None:
    counted = Counted(tmp_path)
    counted.get(images)
    (file,) = (tmp_path / "features").iterdir()
    file.write_bytes(file.read_bytes()[:40])
    assert counted.get(images)[0, 0] == 2 and "cannot be read" in caplog.text
    np.save(file, np.ones((1, 4), np.float16))
    assert counted.get(images)[0, 0] == 3
