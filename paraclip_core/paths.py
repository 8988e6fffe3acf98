"""Paths as users write them: a file here, or one on the Hugging Face hub, ``hf://datasets/ORG/NAME[@REVISION]/FILE``."""

from __future__ import annotations

import os.path
import re
from functools import cache
from pathlib import Path

from paraclip_core.errors import InputError
from paraclip_core.text_safety import one_line

PACKAGES = Path(__file__).resolve().parents[1]
"""The folder that holds the packages paraclip and paraclip_core, for PYTHONPATH: a checkout, or site-packages."""

HUB_PATH = re.compile(r"hf:/{1,2}(?:(datasets)/)?([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+?))?/*")
"""One slash where it came through a `Path`."""


def user_path(written: str | Path) -> Path:
    """The path with the home folder in place of a leading ``~`` or ``~user``, as it is where there is no such user.

    So what looks for it says that it does not exist, and a file may be called ``~captions.csv``.

    A path of the hub is where huggingface_hub's cache has it; what is missing there is fetched, once for a process.
    """
    if match := HUB_PATH.fullmatch(os.fspath(written)):
        kind, repo, revision, inner = match.groups()
        return _fetched(str(repo), "dataset" if kind else "model", revision, inner)
    # Unlike Path's own, this one takes any text.
    return Path(os.path.expanduser(written))  # noqa: PTH111


@cache
def _fetched(repo: str, kind: str, revision: str | None, inner: str | None) -> Path:
    from huggingface_hub import snapshot_download

    patterns = None if inner is None else [inner, f"{inner}/*"]
    try:
        folder = Path(snapshot_download(repo, repo_type=kind, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub's, httpx's and the disk's
        name = f"hf://{'datasets/' if kind == 'dataset' else ''}{repo}"
        raise InputError(
            f"{name} cannot be fetched: {one_line(error)}. See whether the name is right (a data set's begins with "
            "hf://datasets/) and, for a private one, log in with `hf auth login`"
        ) from error
    return folder if inner is None else folder / inner


def below(folder: Path, other: Path | None) -> Path | None:
    """`other` as a path that begins as `folder` does, None where it does not lie below that."""
    if other is None or folder.resolve() not in other.resolve().parents:
        return None
    return folder / other.resolve().relative_to(folder.resolve())
