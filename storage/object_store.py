"""An object store as one folder of objects: any fsspec URL, few operations, errors that say what to do.

An object is written whole or not at all, and there is no rename. Concurrent writers are told apart only if
:meth:`RemoteFolder.create` finds that the store can do so.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from paraclip.storage.files import safe_name
from paraclip_core.errors import ArtifactError, ConfigError, ParaclipError

EXTRAS = {"s3": "pip install 'paraclip[s3]'", "s3a": "pip install 'paraclip[s3]'"}
LOCAL = ("file", "local")
SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL|CONNECTION_STRING", re.IGNORECASE)
QUERY = re.compile(r"\?[^\s\"']+")


def is_url(root: str) -> bool:
    """Whether `root` names an object store and not a folder."""
    scheme, separator, _ = root.partition("://")
    return bool(separator) and scheme not in LOCAL


def open_remote(url: str) -> RemoteFolder:
    """The folder at an fsspec URL; this does not contact the store."""
    scheme = url.partition("://")[0]
    if not _is_plain(url):
        raise ConfigError(
            f"the root {scheme}://… must be a plain URL, such as s3://bucket/folder: credentials and options "
            "belong into the environment (AWS_… variables, or FSSPEC_S3 for any option of the file system)"
        )
    # Takes a moment to import, and folders do not need it.
    from fsspec.core import url_to_fs

    try:
        fs, base = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        how = EXTRAS.get(scheme, "install what the next line names")
        raise ConfigError(f"the root {url} needs a package that is not installed: {how} ({error})") from None
    except ValueError as error:
        raise ConfigError(f"the root {url} cannot be opened: {error}; use a folder or an fsspec URL") from None
    if not base.strip("/"):
        raise ConfigError(f"the root {url} names no bucket; use for example {scheme}://bucket/folder")
    return RemoteFolder(fs, base.rstrip("/"), url.rstrip("/"))


def _is_plain(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return not ("@" in parts.netloc or parts.query or parts.fragment or "::" in url)
    except ValueError:
        return False


class RemoteFolder:
    """Objects below one URL, named by their paths below it. Every method raises ArtifactError if the store fails."""

    def __init__(self, fs: Any, base: str, url: str) -> None:
        """`base` is the folder's name in `fs`, `url` its name for users."""
        self._fs, self._base, self.url = fs, base, url

    def name(self, path: str) -> str:
        """An object's address, for messages."""
        return f"{self.url}/{path}"

    def read(self, path: str) -> bytes | None:
        """An object's bytes, None if there is no such object."""
        with self._errors("read", path):
            try:
                return self._fs.cat_file(self._at(path))
            except FileNotFoundError:
                return None

    def read_all(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Read many small objects at once; missing ones are left out."""
        names = {self._at(path): path for path in paths}
        if not names:
            return {}
        with self._errors("read", ""):
            contents = self._fs.cat(list(names), on_error="return")
        for at, data in contents.items():
            if isinstance(data, BaseException) and not isinstance(data, FileNotFoundError):
                # What cannot be read just now must not be taken for gone.
                with self._errors("read", names[at]):
                    raise data
        return {names[at]: data for at, data in contents.items() if not isinstance(data, BaseException)}

    def write(self, path: str, data: bytes) -> None:
        """Write an object in one request."""
        with self._errors("write", path):
            self._fs.pipe_file(self._at(path), data)

    def create(self, path: str, data: bytes) -> bool:
        """Write an object unless it exists, as far as the store can tell; False if it does."""
        with self._errors("write", path):
            try:
                self._fs.pipe_file(self._at(path), data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                # S3 says so if another writer's request is in progress.
                if "PreconditionFailed" in str(error) or "ConditionalRequestConflict" in str(error):
                    return False
                raise
        return True

    def sizes(self, folder: str) -> dict[str, int]:
        """Size in bytes of every object below `folder`, by its path below it."""
        start = f"{self._at(folder)}/".lstrip("/")
        with self._errors("list", folder):
            try:
                objects = self._fs.find(self._at(folder), detail=True)
            except FileNotFoundError:
                return {}
        inside = ((path.lstrip("/"), info) for path, info in objects.items())
        return {path[len(start) :]: int(info["size"]) for path, info in inside if path.startswith(start)}

    def upload(self, files: Mapping[str, Path]) -> None:
        """Copy local files to objects, many at once."""
        if files:
            with self._errors("write", next(iter(files))):
                self._fs.put([str(path) for path in files.values()], [self._at(path) for path in files])

    def download(self, files: Mapping[str, Path]) -> None:
        """Copy objects to local files, many at once."""
        for path in files.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        if files:
            with self._errors("read", next(iter(files))):
                self._fs.get([self._at(path) for path in files], [str(path) for path in files.values()])

    def sha256(self, path: str) -> str:
        """SHA-256 of an object's bytes, as hex, read in blocks."""
        with self._errors("read", path), self._fs.open(self._at(path), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects; missing ones are ignored."""
        for path in paths:
            with self._errors("delete", path), suppress(FileNotFoundError):
                self._fs.rm_file(self._at(path))

    def _at(self, path: str) -> str:
        return f"{self._base}/{safe_name(path)}" if path else self._base

    @contextmanager
    def _errors(self, what: str, path: str) -> Iterator[None]:
        """Turn whatever a file system raises, which differs for each, into one error without secrets in it."""
        try:
            yield
        except ParaclipError:
            raise
        except FileNotFoundError:
            raise ArtifactError(f"cannot {what} {self.name(path)}: there is no such object or bucket") from None
        except Exception as error:
            hint = "check that it can be reached (AWS_ENDPOINT_URL, the network) and your credentials for it"
            # Not chained: the original text may hold a signed address.
            raise ArtifactError(f"cannot {what} {self.name(path)}: {_redacted(error)}; {hint}") from None


def _redacted(error: Exception) -> str:
    """An error's text without the credentials that this process knows and without the queries of signed addresses."""
    text = QUERY.sub("?…", " ".join(str(error).split()))
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 6:
            text = text.replace(value, "…")
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
