"""Arrays that are computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from paraclip.storage.arrays import stored_arrays


def test_arrays_are_computed_once_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    path, calls = tmp_path / "folder" / "arrays.npz", list[bool]()

    def compute() -> dict[str, NDArray[Any]]:
        calls.append(len(calls) > 0)
        if not calls[-1]:
            raise KeyboardInterrupt
        return {"ao@10": np.arange(3) / 7, "rows": np.zeros((0, 10), np.int64)}

    with pytest.raises(KeyboardInterrupt):
        stored_arrays(path, compute)
    computed, read = stored_arrays(path, compute), stored_arrays(path, compute)
    assert len(calls) == 2 and list(computed) == list(read)
    for name, array in computed.items():
        np.testing.assert_array_equal(array, read[name])
        assert array.dtype == read[name].dtype
    assert list(tmp_path.rglob("*.*")) == [path]
