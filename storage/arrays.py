"""Named arrays that a stage computes once, however often it is stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paraclip.storage.files import write_atomic


def stored_arrays(path: Path, compute: Callable[[], Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The arrays in an ``.npz`` file; if it does not exist, they are computed and stored there, whole or not at all."""
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    arrays: dict[str, Any] = dict(compute())
    write_atomic(path, lambda file: np.savez(file, **arrays))
    return arrays
