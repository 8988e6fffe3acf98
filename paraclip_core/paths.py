"""Paths as users write them."""

from __future__ import annotations

import os.path
from pathlib import Path

__all__ = ["below", "user_path"]


def user_path(written: str | Path) -> Path:
    """The path with the home folder in place of a leading ``~`` or ``~user``, as it is where there is no such user.

    So what looks for it says that it does not exist, and a file may be called ``~captions.csv``.
    """
    # Unlike Path's own, this one takes any text.
    return Path(os.path.expanduser(written))  # noqa: PTH111


def below(folder: Path, other: Path | None) -> Path | None:
    """`other` as a path that begins as `folder` does, None where it does not lie below that."""
    if other is None or folder.resolve() not in other.resolve().parents:
        return None
    return folder / other.resolve().relative_to(folder.resolve())
