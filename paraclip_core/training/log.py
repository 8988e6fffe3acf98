"""The training log: JSON lines whose bytes do not depend on how often the run was killed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paraclip_core.errors import TrainingError

__all__ = ["TrainingLog", "rounded"]


def rounded(value: float) -> float:
    """A figure with six significant digits, as logs and manifests show it."""
    return float(f"{value:.6g}")


class TrainingLog:
    """Lines appended step by step; a resumed run cuts off what lies behind its checkpoint."""

    def __init__(self, path: Path) -> None:
        """Write to `path`; call :meth:`resume` first."""
        self._path = path

    def resume(self, size: int) -> bool:
        """Cut the log to its first `size` bytes; False where it has fewer, so that they cannot be had back."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            if file.tell() < size:
                return False
            file.truncate(size)
        return True

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line.

        Raises:
            TrainingError: the disk is full or read-only.
        """
        told = json.dumps(line, allow_nan=False) + "\n"
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(told)
        except OSError as error:
            # As an error of ours, because of several processes only these tell the stage what happened.
            raise TrainingError(
                f"cannot write the training log {self._path}: {error}; free some space or choose another root"
            ) from error

    def sync(self) -> int:
        """Bring the log to disk and say how many bytes it has."""
        with self._path.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()
