"""Paths as users write them: on this machine, or on the Hugging Face hub."""

from __future__ import annotations

import os.path
from pathlib import Path

from paraclip_core import hub

PACKAGES = Path(__file__).resolve().parents[1]
"""The folder that holds the packages paraclip and paraclip_core, for PYTHONPATH: a checkout, or site-packages."""


def expand(written: str | Path) -> Path:
    """The path with a leading ``~`` or ``~user`` expanded to the home folder; a hub address is fetched.

    If there is no such user the path is unchanged, so a file may be called ``~captions.csv``, and a missing one is
    reported when it is opened.
    """
    text = os.fspath(written)
    # Unlike Path.expanduser, this accepts any text.
    return hub.fetch(text) or Path(os.path.expanduser(text))  # noqa: PTH111


def below(folder: Path, other: Path | None) -> Path | None:
    """`other` as a path that starts with `folder`; None if it is not inside `folder`."""
    if other is None or folder.resolve() not in other.resolve().parents:
        return None
    return folder / other.resolve().relative_to(folder.resolve())
