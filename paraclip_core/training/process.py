"""Process-level settings for training: memory, kernels and SIGTERM."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Options of glibc's ``mallopt``, as ``malloc.h`` numbers them."""

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int | None:
    """Free memory of a device in bytes; None if unknown.

    On a CPU with Linux: the system's available memory, up to the container's remaining limit (cgroup v2).
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    available = _kib(MEMINFO, "MemAvailable")
    limit, used = _text(CGROUP / "memory.max"), re.search(r"^anon (\d+)", _text(CGROUP / "memory.stat"), re.MULTILINE)
    if available is None or used is None or not limit.strip().isdigit():
        return available
    return max(0, min(available, int(limit) - int(used[1])))


def keep_freed_memory() -> None:
    """Let the C library (glibc) keep freed blocks up to 1 GiB, for the life of the process.

    Otherwise it returns large blocks at once, and the system clears every page again for the next tensor: writing a new
    tensor of 32 MB took three times as long, and a step takes thousands of these. A step of the built-in base took a
    tenth to a quarter longer.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if sys.platform == "linux" and set_option is not None:
        set_option(TRIM_THRESHOLD, 1 << 30)
        set_option(MMAP_THRESHOLD, 1 << 28)


def configure_kernels() -> None:
    """Bound oneDNN's kernel cache, and let cuBLAS be deterministic; call it before the first computation, since both
    libraries read their settings once.

    Without a workspace of a fixed size :func:`deterministic` makes every matrix product on CUDA an error, also one that
    comes after products outside of the block.

    Every chunk of texts has its own shape, and its kernels are cached. In bf16 on a CPU, 600 shapes of one layer of
    512 by 2,048 took 1.5 GB; with a bound of 64 0.4 GB, and no more with 1,200 shapes. A step over shared prefixes
    needs about 30 kernels, since sizes are rounded to a few values.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def deterministic() -> Iterator[None]:
    """Use only deterministic kernels inside the block."""
    before = torch.are_deterministic_algorithms_enabled()
    fillings: Any = torch.utils.deterministic  # its attributes are created at run time
    filled = fillings.fill_uninitialized_memory
    configure_kernels()
    torch.use_deterministic_algorithms(True)
    fillings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        fillings.fill_uninitialized_memory = filled


@contextmanager
def sigterm_noticed() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether SIGTERM was received; the previous handler runs at the end of the block."""
    received: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    except ValueError:  # only the main thread can install a handler
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)
        if received:
            os.kill(os.getpid(), signal.SIGTERM)


def _kib(path: Path, name: str) -> int | None:
    """The value in bytes of a line ``name: … kB`` in a kernel file."""
    match = re.search(rf"^{name}:\s+(\d+) kB", _text(path), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
