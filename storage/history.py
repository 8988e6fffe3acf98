"""Which segments a cache had at some moment, so that it can be told whether it has only grown since."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paraclip_core.errors import ArtifactError
from storage.atomic import read_json, write_json

__all__ = ["History", "Mark"]


@dataclass(frozen=True)
class Mark:
    """The names of the segments at one moment."""

    count: int
    digest: str
    """Of all names, in order."""

    def begins(self, names: Sequence[str]) -> bool:
        """Whether `names` begins with these, so that no key that was answered then has another answer now."""
        return self.count <= len(names) and _digest(names[: self.count]) == self.digest


class History:
    """A mark in a file. Use it while holding the cache's lock."""

    def __init__(self, path: Path) -> None:
        """`path` is the file, which need not be there."""
        self._path = path

    @staticmethod
    def mark(names: Sequence[str]) -> Mark:
        """The mark of a cache whose segments are `names`, in order."""
        return Mark(len(names), _digest(names))

    def holds(self, names: Sequence[str]) -> bool:
        """Whether `names` begins with the segments that were written down; False where nothing readable was."""
        try:
            found = read_json(self._path)
            return Mark(int(found["segments"]), str(found["digest"])).begins(names)
        except (ArtifactError, KeyError, TypeError, ValueError):
            return False

    def write(self, names: Sequence[str]) -> None:
        """Write down that the cache's segments are `names`.

        Raises:
            ArtifactError: the disk is full, or the folder read-only.
        """
        mark = self.mark(names)
        write_json(self._path, {"segments": mark.count, "digest": mark.digest})


def _digest(names: Sequence[str]) -> str:
    return hashlib.blake2b("\n".join(names).encode(), digest_size=16).hexdigest()
