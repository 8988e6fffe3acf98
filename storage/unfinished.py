"""Unfinished work at an object store, so that another machine goes on where a lost one stopped.

A push is a snapshot: the files of ``out/`` and ``scratch/`` as objects named by their contents, and last one object
``snapshot.json`` that says which file is which. A push that is cut off leaves the snapshot before it as it was. It is
taken between two writes of the stage, so it is a state in which a kill might have left the folder, and every stage goes
on from any such state. (With training in several processes a snapshot may come at any time. There a checkpoint is
renamed into place after the log lines that it counts, and a push measures the log after it has seen the checkpoints.)
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from paraclip.storage.files import file_sha256, files_below, is_temporary, json_bytes, parse_json, read_json, write_json
from paraclip.storage.locks import Lease
from paraclip.storage.manifests import safe_name
from paraclip.storage.object_store import RemoteFolder
from paraclip_core.errors import ArtifactError, ConfigError, LockedError

log = logging.getLogger(__name__)

PUSH_VARIABLE = "PARACLIP_PUSH_SECONDS"
PUSH_SECONDS = 300.0
SNAPSHOT = "snapshot.json"
LEDGER = "pushed.json"
"""What this folder and the object store last agreed on, with the state of each file at that time."""
BLOCK = 2**20


class FileState(NamedTuple):
    """A file when it was looked at: bytes, time of change in nanoseconds, SHA-256 of its contents."""

    size: int
    mtime: int
    sha256: str


class UnfinishedWork:
    """The unfinished work of one fingerprint, here and at the object store. Use it while holding lock and lease."""

    def __init__(
        self, remote: RemoteFolder, base: str, folder: Path, incoming: Path, leased: Lease | None = None
    ) -> None:
        """`base` is its folder at the store, `folder` the one here; `incoming` is for temporary folders.

        `leased` says whether the lease is this one's still.
        """
        self._remote, self._base, self._folder, self._incoming = remote, base, folder, incoming
        self._lease = leased
        self._every, self._last = _push_seconds(), time.monotonic()
        self._thread: threading.Thread | None = None
        self._gate = threading.Lock()

    # Pushing

    def push_if_due(self) -> None:
        """Push in the background if it is time; call it as often as you like, between two writes of the stage."""
        if self._lease is not None and self._lease.lost:
            raise LockedError(f"another machine has gone on with {self._base}; run again for what it makes")
        if time.monotonic() - self._last < self._every or not self._gate.acquire(blocking=False):
            return
        self._last = time.monotonic()
        copy = self._incoming / uuid.uuid4().hex
        try:
            # Links hold on to files that the stage deletes or replaces while they are uploaded.
            for part in ("out", "scratch"):
                if (self._folder / part).is_dir():
                    shutil.copytree(self._folder / part, copy / part, copy_function=_link)
        except OSError as error:
            log.warning("unfinished work is not pushed this time: %s", error)
            self._clear(copy)
            return

        def push() -> None:
            self._push_quietly(copy)
            self._clear(copy)

        self._thread = threading.Thread(target=push, name="push", daemon=True)
        self._thread.start()

    def finish(self, push: bool) -> None:
        """Wait for the background and, where the stage did not end well, push what it left."""
        if self._thread:
            self._thread.join()
        if push:
            self._push_quietly(self._folder)

    def _clear(self, copy: Path) -> None:
        shutil.rmtree(copy, ignore_errors=True)
        self._gate.release()

    def _push_quietly(self, folder: Path) -> None:
        try:
            if self._lease is not None and not self._lease.holds():
                log.warning("the unfinished work %s is another machine's by now and is not pushed", self._base)
                return
            self._push(folder)
        except (ArtifactError, OSError) as error:
            log.warning("unfinished work is not pushed: %s", error)

    def _push(self, folder: Path) -> None:
        """Push the files of `folder`, which holds ``out`` and ``scratch``; nothing is sent twice."""
        ledger = self._ledger()
        states = {name: _state(path, ledger.get("files", {}).get(name)) for name, path in _files(folder)}
        snapshot = json_bytes({name: {"size": state.size, "sha256": state.sha256} for name, state in states.items()})
        identity, before = hashlib.sha256(snapshot).hexdigest(), ledger.get("snapshots", [])
        if not states or before == [identity]:
            return
        sizes = self._remote.sizes(f"{self._base}/objects")
        missing = {s.sha256: (folder / name, s) for name, s in states.items() if sizes.get(s.sha256) != s.size}
        self._remote.upload({self._object(sha): path for sha, (path, _) in missing.items()})
        for sha, (path, state) in missing.items():
            stat = path.stat()
            if (stat.st_size, stat.st_mtime_ns) != state[:2]:
                # It grew meanwhile, as a log does: what it was is its beginning.
                with path.open("rb") as file:
                    self._remote.upload_start(self._object(sha), file, state.size)
        # A kill between here and the second time leaves either of the two at the store, and both are this folder's.
        write_json(self._folder / LEDGER, {"snapshots": [*before[-1:], identity], "files": states})
        self._remote.write(f"{self._base}/{SNAPSHOT}", snapshot)
        write_json(self._folder / LEDGER, {"snapshots": [identity], "files": states})
        named = {state.sha256 for state in states.values()}
        self._remote.delete(self._object(sha) for sha in sizes if sha not in named)
        log.info("pushed the unfinished work %s: %s of %s files", self._base, len(missing), len(states))

    # Taking over

    def pull(self) -> None:
        """Take over the snapshot at the store, unless it is the one that this folder has gone on from.

        A snapshot of which something is lost is logged and left: the work then starts from what is here.
        """
        data = self._remote.read(f"{self._base}/{SNAPSHOT}")
        identity = hashlib.sha256(data or b"").hexdigest()
        if data is None or identity in self._ledger().get("snapshots", []):
            return
        draft = self._incoming / uuid.uuid4().hex
        work = draft / "work"
        try:
            hashes = {safe_name(name): entry["sha256"] for name, entry in parse_json(data).items()}
            self._remote.download({self._object(sha): draft / sha for sha in hashes.values()})
            for name, sha in hashes.items():
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                if file_sha256(draft / sha) != sha:
                    raise ArtifactError(f"{self._remote.name(self._object(sha))} was changed")
                shutil.copyfile(draft / sha, work / name)
            states = {name: _state(work / name, None) for name in hashes}
            write_json(work / LEDGER, {"snapshots": [identity], "files": states})
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            work.rename(self._folder)
        except (ArtifactError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("the unfinished work %s cannot be taken over: %s", self._remote.name(self._base), error)
            return
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        log.info("goes on from the %s files of unfinished work that were pushed to %s", len(hashes), self._remote.url)

    def objects(self) -> dict[str, str]:
        """The path of every object at the store, by the SHA-256 of its contents."""
        return {sha: self._object(sha) for sha in self._remote.sizes(f"{self._base}/objects")}

    def delete(self) -> None:
        """Delete it at the store, the snapshot first."""
        objects = self._remote.sizes(self._base)
        self._remote.delete(f"{self._base}/{name}" for name in sorted(objects, key=lambda name: name != SNAPSHOT))

    def _ledger(self) -> dict[str, Any]:
        with suppress(ArtifactError):
            ledger = read_json(self._folder / LEDGER)
            return ledger if isinstance(ledger, dict) else {}
        return {}

    def _object(self, sha: str) -> str:
        return f"{self._base}/objects/{sha}"


def _push_seconds() -> float:
    text = os.environ.get(PUSH_VARIABLE)
    try:
        return float(text) if text else PUSH_SECONDS
    except ValueError:
        raise ConfigError(f"{PUSH_VARIABLE}={text!r} must be a number of seconds") from None


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names below `folder` and paths of all but drafts, which may come and go meanwhile, as may a draft's folder."""
    for part in ("out", "scratch"):
        for path in sorted(files_below(folder / part, changing=True)):
            name = path.relative_to(folder)
            if path.is_file() and not is_temporary(name):
                yield name.as_posix(), path


def _state(path: Path, before: list[Any] | None) -> FileState:
    """The state of a file, which may grow while it is read, so only its size at the start counts."""
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        if before and before[:2] == [stat.st_size, stat.st_mtime_ns]:
            return FileState(*before)
        digest, left = hashlib.sha256(), stat.st_size
        while left and (block := file.read(min(BLOCK, left))):
            digest.update(block)
            left -= len(block)
    return FileState(stat.st_size, stat.st_mtime_ns, digest.hexdigest())


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, target)
    return target
