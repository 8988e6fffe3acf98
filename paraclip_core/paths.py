"""Paths as users write them: on this machine, or on the Hugging Face hub."""

from __future__ import annotations

import os.path
from pathlib import Path

from paraclip_core import hub

PACKAGES = Path(__file__).resolve().parents[1]
"""The folder that holds the packages paraclip and paraclip_core, for PYTHONPATH: a checkout, or site-packages."""


def expand(written: str | Path) -> Path:
    """The path with the home folder in place of a leading ``~`` or ``~user``; an address of the hub is fetched.

    If there is no such user the path stays as it is, so what looks for it says that it does not exist, and a file may
    be called ``~captions.csv``.
    """
    text = os.fspath(written)
    if hub.ADDRESS.fullmatch(text):
        return hub.fetch(text)
    # Unlike Path's own, this one takes any text.
    return Path(os.path.expanduser(text))  # noqa: PTH111


def below(folder: Path, other: Path | None) -> Path | None:
    """`other` as a path that begins as `folder` does, None if it does not lie below that."""
    if other is None or folder.resolve() not in other.resolve().parents:
        return None
    return folder / other.resolve().relative_to(folder.resolve())
