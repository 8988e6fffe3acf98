"""The training log: JSON lines whose bytes do not depend on interruptions of the run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def rounded(value: float) -> float:
    """A figure rounded to the six significant digits of logs and manifests."""
    return float(f"{value:.6g}")


class TrainingLog:
    """JSON lines, appended step by step; a resumed run truncates the log to its checkpoint."""

    def __init__(self, path: Path) -> None:
        """Write to `path`; call :meth:`resume` first."""
        self._path = path

    def resume(self, size: int) -> bool:
        """Truncate the log to its first `size` bytes; returns False if it is shorter, that is, if lines are lost."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            if file.tell() < size:
                return False
            file.truncate(size)
        return True

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def sync(self) -> int:
        """Flush the log to disk; returns its size in bytes."""
        with self._path.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()
