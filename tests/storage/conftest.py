"""Fixtures of the storage tests."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from paraclip.storage import locks
from paraclip.storage.answers import AnswerStore
from paraclip.storage.remote_store import RemoteStore
from paraclip.storage.roots import LOCAL_VARIABLE, open_store
from tests.kit.machines import Machine, Objects


@pytest.fixture
def store(tmp_path: Path) -> AnswerStore:
    """An empty answers cache."""
    return AnswerStore(tmp_path / "cache")


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], bool]:
    """Whether a power cut would leave a file's contents, or a folder's names, as they are now."""
    flushed: dict[int, object] = {}

    def state(entry: Path | int) -> tuple[int, object]:
        # Not by pathlib: an entry may be the number of an open file.
        status = os.stat(entry)  # noqa: PTH116 (of what is open, too)
        return status.st_ino, sorted(os.listdir(entry)) if stat.S_ISDIR(status.st_mode) else status.st_size  # noqa: PTH208

    monkeypatch.setattr(os, "fsync", lambda entry: flushed.update([state(entry)]))
    return lambda path: state(path) in flushed.items()


@pytest.fixture
def url() -> Iterator[str]:
    """A root of its own in this process's memory."""
    name = f"memory://{uuid.uuid4().hex}/root"
    yield name
    fsspec.filesystem("memory").rm(name.removeprefix("memory:/").rpartition("/")[0], recursive=True)


@pytest.fixture
def machine(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Opens the root as the machine of this name does, which has a disk of its own."""
    (tmp_path / "fs").mkdir()
    fsspec.filesystem("memory").mkdir(url.removeprefix("memory:/"))

    def opened(name: str) -> RemoteStore:
        monkeypatch.setenv(LOCAL_VARIABLE, str(tmp_path / name))
        store = open_store(url)
        assert isinstance(store, RemoteStore)
        return store

    return opened


@pytest.fixture
def objects(url: str) -> Objects:
    """What lies at the root."""
    return Objects(url)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that beat and die in no time."""
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(locks, "DEAD_SECONDS", 1.0)
    monkeypatch.setattr(locks, "LEASE_PAUSES", (0.01, 0.05))
