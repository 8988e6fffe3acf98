"""What training asks of its process."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from paraclip_core.training.guards import free_heap


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no malloc_trim")
def test_holes_in_the_heap_go_back_to_the_system() -> None:
    blocks = [bytearray(100_000) for _ in range(1000)]
    for block in blocks:
        block[:: os.sysconf("SC_PAGE_SIZE")] = b"x" * len(range(0, len(block), os.sysconf("SC_PAGE_SIZE")))
    last = blocks[-1]  # so that the end of the heap is in use
    blocks.clear()
    before = resident()
    free_heap()
    assert before - resident() > 50_000_000
    assert len(last) == 100_000
