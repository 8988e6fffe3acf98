"""Open an artifact root, wherever it is: a folder, or a URL of an object store."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from paraclip.storage.artifacts import ArtifactStore
from paraclip.storage.object_store import is_url, open_remote
from paraclip.storage.remote_store import RemoteStore
from paraclip_core.errors import UnknownNameError

if TYPE_CHECKING:
    from paraclip.storage.answers import AnswerStore

log = logging.getLogger(__name__)

LOCAL_VARIABLE = "PARACLIP_LOCAL"
FOLDERS = ("artifacts", "cache", "channels", "logs", "prefect", "results", "work")  # a root has one of them


def open_store(root: Path | str) -> ArtifactStore:
    """The artifact store at `root`: a folder, or an fsspec URL such as ``s3://bucket/folder``.

    With a URL, stages work in a folder on this machine, and what they finish is shared through the object store.
    """
    text = str(root)
    if is_url(text):
        return RemoteStore(working_folder(text), open_remote(text))
    return ArtifactStore(unquote(urlsplit(text).path) if "://" in text else _at_home(text))


def check_root(store: ArtifactStore) -> None:
    """Check that the root exists, for what only reads it."""
    if store.remote is None and not any((store.root / name).exists() for name in FOLDERS):
        raise UnknownNameError(
            f"there is no root {store.root}: nothing was run there; give --root, or set PARACLIP_ROOT"
        )


def open_answers(store: ArtifactStore) -> AnswerStore:
    """The answers cache of a store."""
    # DuckDB takes a while to import, and most commands need none.
    from paraclip.storage.answers import AnswerStore

    return AnswerStore(store.cache, store.remote)


def working_folder(url: str) -> Path:
    """This machine's folder for the root at `url`, one per root, below PARACLIP_LOCAL or the user's cache folder."""
    plain = url.rstrip("/")
    name = re.sub(r"[^A-Za-z0-9]+", "-", plain)[:60].strip("-")
    return local_folder() / f"{name}-{hashlib.blake2b(plain.encode(), digest_size=4).hexdigest()}"


def local_folder() -> Path:
    """This machine's folder for what can be fetched again: PARACLIP_LOCAL, or one in the user's cache folder."""
    if chosen := os.environ.get(LOCAL_VARIABLE):
        return _at_home(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "paraclip"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paraclip"


def _at_home(written: str) -> Path:
    # Unlike Path's own, this one takes any text.
    return Path(os.path.expanduser(written))  # noqa: PTH111
