"""Files on the Hugging Face hub: ``hf://datasets/ORG/NAME[@REVISION]/FILE``, fetched into huggingface_hub's cache."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from paraclip_core.errors import InputError
from paraclip_core.text_safety import one_line

ADDRESS = re.compile(r"hf:/{1,2}(?:(datasets)/)?([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+?))?/*")
"""An address that went through a `Path` has a single slash."""


def fetch(address: str) -> Path | None:
    """The path of a file or folder in the hub's cache; what is missing is fetched, once per process.

    None if `address` is not one of the hub.

    Raises:
        InputError: it cannot be fetched from the hub.
    """
    match = ADDRESS.fullmatch(address)
    return None if match is None else _fetched(*match.groups())


@cache
def _fetched(kind: str | None, repo: str, revision: str | None, inner: str | None) -> Path:
    from huggingface_hub import snapshot_download  # takes a second to import

    patterns = None if inner is None else [inner, f"{inner}/*"]
    kind = "dataset" if kind else "model"
    try:
        folder = Path(snapshot_download(repo, repo_type=kind, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub's, httpx's and the disk's
        name = f"hf://{'datasets/' if kind == 'dataset' else ''}{repo}"
        raise InputError(
            f"{name} cannot be fetched: {one_line(error)}. Check the name (a dataset's begins with "
            "hf://datasets/) and, for a private repository, log in with `hf auth login`"
        ) from error
    return folder if inner is None else folder / inner
