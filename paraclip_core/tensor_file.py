"""Atomic writing of a safetensors file."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write `tensors` to `path` and flush them to disk; the same tensors give the same bytes.

    The draft has its own folder, ``.NAME.tmp`` next to `path`: safetensors writes next to its target, under a random
    name, and a kill would leave that file behind. Two processes must not write the same `path` at once.

    Args:
        tensors: contiguous, on the CPU, sharing no memory.
        path: replaced if it exists; its folder must exist.
        metadata: additional entries of the header.
    """
    draft = path.with_name(f".{path.name}.tmp")
    try:
        remove_draft(draft)
        draft.mkdir()
        written = draft / path.name
        save_file(dict(tensors), written, dict(metadata) if metadata else None)
        set_default_mode(written)
        _flush(written)
        written.replace(path)
        # Otherwise a power failure could undo the rename, but not the removals after it.
        _flush(path.parent)
    except SafetensorError as error:  # which hides the OSError
        raise OSError(f"{error}: {path}") from error
    finally:
        remove_draft(draft)


def set_default_mode(path: Path) -> None:
    """Give `path` the mode of any new file in its folder; safetensors makes files that only their owner can read."""
    usual = path.with_name(f".{path.name}.mode.tmp")
    try:
        usual.touch()
        path.chmod(stat.S_IMODE(usual.stat().st_mode))
    finally:
        usual.unlink(missing_ok=True)


def remove_draft(draft: Path) -> None:
    if draft.is_dir() and not draft.is_symlink():
        shutil.rmtree(draft)
    else:
        draft.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
