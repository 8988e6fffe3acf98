"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from paraclip_core.errors import ArtifactError, ConfigError

TEMPORARY = ".*.tmp"
STALE_DRAFT_SECONDS = 24 * 3600
SETTLED_NS = 100_000_000


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` with a temporary file next to `path`, flush it to disk and rename it to `path`."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with _deleted_on_failure(temporary):
        write_flushed(temporary, write)
        temporary.replace(path)
        sync_folder(path.parent)


def write_flushed(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` with a new file and flush it to disk; its folder is created if it is missing."""
    with _deleted_on_failure(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def _deleted_on_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a draft of a folder, which appears at `folder` if the block ends without error, whole or not at all.

    The draft is a path next to it and does not exist yet.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty; choose a new folder")
    folder = folder.absolute()
    draft = folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Drafts


def remove_temporary(folder: Path) -> None:
    """Delete what killed writers left anywhere below `folder`; nobody may be writing there."""
    for path in list(folder.rglob(TEMPORARY)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def sweep_drafts(folder: Path) -> None:
    """Delete the files in `folder` that are too old to have a writer at work on them; failures wait."""
    with suppress(OSError):
        for path in folder.glob(TEMPORARY):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_DRAFT_SECONDS:
                    path.unlink()


# Contents


def safe_name(name: str) -> str:
    """Return a file's path below a folder unchanged; raises if it cannot be one."""
    if not name or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ArtifactError(f"{name!r} cannot be the path of a file below a folder; delete what names it")
    return name


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below `folder`, in any order."""

    def fail(error: OSError) -> None:
        raise error

    for directory, _, names in os.walk(folder, onerror=fail):
        yield from (Path(directory) / name for name in names)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settled(changed_ns: int) -> bool:
    """Whether a file's times will show its next change; a file changed just now may change again within a tick."""
    return time.time_ns() - changed_ns > SETTLED_NS


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    try:
        data = json_bytes(value)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be written, its content is not JSON: {error}") from error
    write_atomic(path, lambda file: file.write(data))


def json_bytes(value: Any) -> bytes:
    """Indented JSON with sorted keys; equal values give equal bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "surrogatepass")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise ArtifactError(f"{path} is not valid JSON ({error}); restore or delete it") from error


def parse_json(data: bytes) -> Any:
    """Parse a JSON document from any source."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError(str(error)) from error
