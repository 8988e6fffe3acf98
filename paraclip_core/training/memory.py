"""Memory that training may take, and when what it has freed goes back to the system."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

__all__ = [
    "GIB",
    "anonymous_memory",
    "bound_kernel_cache",
    "free_heap",
    "free_memory",
    "keep_freed_memory",
    "memory_for_batches",
]

GIB = 2**30

SHARE = 1 / 3
"""Of the memory that is free, what batches are given: the estimate of what they take may be 2.5 times too low."""

UNKNOWN_GIB = 4.0
"""Given to batches where nothing says how much is free."""

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Options of glibc's ``mallopt``, as ``malloc.h`` numbers them."""

STATUS, MEMINFO, CGROUP = Path("/proc/self/status"), Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def memory_for_batches(device: torch.device, processes: int = 1) -> float:
    """GiB that this process may keep for the backward pass: a third of what is free now.

    Args:
        device: where the text tower is.
        processes: how many train together; on a CPU they share its memory.
    """
    free = free_memory(device)
    if free is None:
        return UNKNOWN_GIB
    return SHARE * free / GIB / (processes if device.type == "cpu" else 1)


def free_memory(device: torch.device) -> int | None:
    """Bytes of a device's memory that are free; None where that cannot be told.

    Of a CPU's memory on Linux: what the system has available, at most what the container may still take (cgroup v2).
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


def anonymous_memory() -> int:
    """Bytes of this process in memory that are no file's, 0 where that cannot be told."""
    return _kib(STATUS, "RssAnon") or 0


def free_heap() -> None:
    """Give the system back what the C library keeps of freed memory, where it has a call for that (glibc).

    Tensors of ever new shapes leave holes in the heap that the next ones do not fit into.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def keep_freed_memory() -> None:
    """Let the C library keep what is freed up to 1 GiB, for as long as the process lives, where it is glibc.

    It gives large blocks back to the system at once otherwise, which clears every page again when the next tensor takes
    it: writing a new tensor of 32 MB took three times as long. A step frees and takes thousands of these.
    """
    if sys.platform != "linux":
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(TRIM_THRESHOLD, 1 << 30)
        set_option(MMAP_THRESHOLD, 1 << 28)


def bound_kernel_cache() -> None:
    """Bound what oneDNN keeps; to be called before the first computation, since it looks at the bound only once.

    Every chunk of texts has a shape of its own, and what is built for each is kept. In bf16 on a CPU, 600 shapes of one
    layer of 512 by 2,048 took 1.5 GB; with a bound of 64 0.4 GB, and no more with 1,200 shapes. A step over shared
    beginnings needs about 30 kernels, and its sizes are rounded to few, see ``packed_attention.padded_count``.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")


def _kib(path: Path, name: str) -> int | None:
    """A line ``name: … kB`` of a file of the kernel's, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", _text(path), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
