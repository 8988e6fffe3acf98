"""Files and folders that appear whole or not at all, and what an operating-system error means for the user."""

from __future__ import annotations

import errno
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

from paraclip_core.errors import FAILING, FULL, ArtifactError, ConfigError, FullDiskError, ParaclipError

TEMPORARY = ".*.tmp"
STALE_DRAFT_SECONDS = 24 * 3600
SETTLED_NS = 100_000_000
DISK_ERRORS = (*FULL, errno.EROFS, *FAILING)
"""Error numbers that concern a disk, whatever the operation."""


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` with a temporary file next to `path`, flush it to disk and rename it to `path`."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with storage_errors(path), _deleted_on_failure(temporary):
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
        # On a read-only disk even deleting what is not there fails, which must not hide the reason.
        with suppress(OSError):
            path.unlink()
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
    except OSError as error:
        if error.errno in FULL:
            raise storage_error(error, folder) from error
        # It lies where the user said, whatever the root is.
        raise ArtifactError(f"cannot make {folder}: {error}; choose another folder") from error
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
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is not valid JSON ({error}); restore or delete it") from error


def parse_json(data: bytes) -> Any:
    """Parse a JSON document from any source."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError(str(error)) from error


# Errors


def storage_error(error: OSError, path: Path) -> ArtifactError:
    """Describe what an operating-system error about `path` means for the user and how to fix it."""
    if error.errno in FULL:
        return FullDiskError(f"no space left while writing {path}; free some (`paraclip artifacts gc`) and run again")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return ArtifactError(f"cannot write {path}: {error.strerror}; choose a writable root with PARACLIP_ROOT")
    if error.errno in FAILING:
        return ArtifactError(
            f"cannot read or write {path}: {error.strerror}; its disk or network folder is at fault (`dmesg` may say "
            "more), run again when it is fixed"
        )
    return ArtifactError(
        f"cannot write {path}: {error.strerror or error}; the root must be a folder that can be made and written, "
        "choose it with run.root or PARACLIP_ROOT"
    )


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn every operating-system error of the block into an ArtifactError about `path`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error


@contextmanager
def convert_disk_errors(path: Path) -> Iterator[None]:
    """Turn disk errors, and no others, into an ArtifactError; it names `path` if the error names no file."""
    try:
        yield
    except FullDiskError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise storage_error(error, Path(error.filename2 or error.filename or path)) from error
        # A library's error, or one of ours that says what could not be written, quotes the reason.
        if any(os.strerror(code) in str(error) for code in FULL):
            ours = isinstance(error, ParaclipError)
            raise (FullDiskError(str(error)) if ours else storage_error(OSError(FULL[0], ""), path)) from error
        raise
