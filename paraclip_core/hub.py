"""Files on the Hugging Face hub: ``hf://datasets/ORG/NAME[@REVISION]/FILE``, fetched into huggingface_hub's cache."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from paraclip_core.errors import InputError
from paraclip_core.text_safety import one_line

ADDRESS = re.compile(r"hf:/{1,2}(?:(datasets)/)?([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+?))?/*")
"""One slash if it came through a `Path`."""


@cache
def fetch(address: str) -> Path:
    """The place of a file or folder in the hub's cache; what is missing there is fetched, once for a process.

    Raises:
        InputError: the hub does not give it.
    """
    match = ADDRESS.fullmatch(address)
    assert match is not None
    kind, repo, revision, inner = match.groups()
    from huggingface_hub import snapshot_download  # takes a second to import

    patterns = None if inner is None else [inner, f"{inner}/*"]
    kind = "dataset" if kind else "model"
    try:
        folder = Path(snapshot_download(repo, repo_type=kind, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub's, httpx's and the disk's
        name = f"hf://{'datasets/' if kind == 'dataset' else ''}{repo}"
        raise InputError(
            f"{name} cannot be fetched: {one_line(error)}. See whether the name is right (a data set's begins with "
            "hf://datasets/) and, for a private one, log in with `hf auth login`"
        ) from error
    return folder if inner is None else folder / inner
