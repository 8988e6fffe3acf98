"""The one door to an artifact root, wherever it lies: a folder, or a URL of an object store."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from paraclip.storage.artifacts import ArtifactStore
from paraclip.storage.object_store import is_url, open_remote
from paraclip_core.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from paraclip.storage.answers import AnswerStore

LOCAL_VARIABLE = "PARACLIP_LOCAL"
FOLDERS = ("artifacts", "cache", "channels", "logs", "prefect", "results", "work")  # a root has one of them


def open_store(root: Path | str) -> ArtifactStore:
    """The artifact store at `root`: a folder, or an fsspec URL such as ``s3://bucket/folder``.

    With a URL, stages work in a folder on this machine, and what they finish is shared through the object store.
    """
    text = str(root)
    if is_url(text):
        from paraclip.storage.remote import RemoteStore

        return RemoteStore(working_folder(text), open_remote(text))
    return ArtifactStore(unquote(urlsplit(text).path) if "://" in text else _at_home(text))


def check_root(store: ArtifactStore) -> None:
    """See that there is such a root, for what only looks at it."""
    if store.remote is not None:
        return
    root, how = store.root, "give --root, or set PARACLIP_ROOT"
    if not root.is_dir():
        raise UnknownNameError(f"there is no root {root}: nothing was run there; {how}")
    if not any((root / name).exists() for name in FOLDERS) and any(root.iterdir()):
        raise UnknownNameError(f"{root} is no root: it has none of {', '.join(FOLDERS)}; {how}")


def open_answers(store: ArtifactStore) -> AnswerStore:
    """The answers cache of a store."""
    # DuckDB takes a while to import, and most commands need none.
    from paraclip.storage.answers import AnswerStore

    return AnswerStore(store.cache, store.remote)


def working_folder(url: str) -> Path:
    """This machine's folder for the root at `url`, one for each, below PARACLIP_LOCAL or the user's cache folder."""
    plain = url.rstrip("/")
    name = re.sub(r"[^A-Za-z0-9]+", "-", plain)[:60].strip("-")
    return local_folder() / f"{name}-{hashlib.blake2b(plain.encode(), digest_size=4).hexdigest()}"


def local_folder() -> Path:
    """This machine's folder for what can be had again: PARACLIP_LOCAL, or one in the user's folder for caches."""
    chosen = os.environ.get(LOCAL_VARIABLE)
    return _at_home(chosen) if chosen else _caches() / "paraclip"


def _at_home(written: str) -> Path:
    path = Path(os.path.expanduser(written))  # noqa: PTH111
    if path.parts and path.parts[0].startswith("~"):
        # It would be made here, under a name that looks like another place.
        raise ConfigError(f"{written}: {path.parts[0]} is nobody's home folder here; write the path in full")
    return path


def _caches() -> Path:
    try:
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        # As in a container whose user is a number alone.
        raise ConfigError(
            f"this user has no home folder; set {LOCAL_VARIABLE} to a folder of this machine for copies of what is on "
            "an object store"
        ) from error
