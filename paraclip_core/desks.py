"""Temporary folders that do not stay for ever when their owner is killed.

A folder's owner holds a lock on a file in it, which the kernel gives back however the owner ends. Whoever makes the
next folder deletes those whose lock nobody holds.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from paraclip_core.errors import StageError

__all__ = ["Desk", "sweep"]

log = logging.getLogger(__name__)

PREFIX = "paraclip-"
OWNER = ".owner"
SETTLED_SECONDS = 60.0
"""Age from which a folder without an owner is taken for abandoned; a younger one may just be in the making."""


@dataclass
class Desk:
    """A temporary folder for as long as this process lives; as a context, until its end."""

    path: Path
    _owner: int

    @classmethod
    def make(cls, kind: str = "") -> Desk:
        """A new folder, once what killed processes left behind is gone.

        Raises:
            StageError: there is no room for it, or no folder for temporary ones at all.
        """
        try:
            sweep()
            path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}"))
            try:
                owner = os.open(path / OWNER, os.O_CREAT | os.O_RDWR, 0o600)
            except OSError:
                # Without its file nobody would sweep it.
                shutil.rmtree(path, ignore_errors=True)
                raise
        except OSError as error:
            raise StageError(
                f"cannot make a temporary folder: {error}; free some space there, or choose another place with TMPDIR"
            ) from error
        fcntl.flock(owner, fcntl.LOCK_EX)
        return cls(path, owner)

    def remove(self) -> None:
        """Delete the folder and give the lock back; what cannot be deleted is left to the next sweep."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._owner)

    def __enter__(self) -> Path:
        """The folder."""
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Delete it."""
        self.remove()


def sweep() -> list[Path]:
    """Delete the folders of this user whose owners are dead; returns them."""
    found = [path for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*") if _abandoned(path)]
    for path in found:
        log.info("%s was left by a killed process and is deleted", path)
        shutil.rmtree(path, ignore_errors=True)
    return found


def _abandoned(path: Path) -> bool:
    with suppress(OSError):
        stat = path.lstat()
        # Anybody may put a link or a folder of this name there.
        if path.is_symlink() or not path.is_dir() or stat.st_uid != os.getuid():
            return False
        if time.time() - (path / OWNER).lstat().st_mtime < SETTLED_SECONDS:
            return False
        owner = os.open(path / OWNER, os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(owner)
        return True
    return False
