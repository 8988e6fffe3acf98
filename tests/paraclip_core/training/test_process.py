"""What training may take of a machine's memory, and its kernels."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
import torch

from paraclip.tasks.training.data import use_threads
from paraclip_core.config import Settings
from paraclip_core.training import process
from paraclip_core.training.process import GIB, anonymous_memory, free_memory, memory_for_batches

CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the kernel says of a machine with 12 GiB free, in no container."""
    (tmp_path / "meminfo").write_text(f"MemTotal: {24 * 2**20} kB\nMemAvailable:   {12 * 2**20} kB\n")
    monkeypatch.setattr(process, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(process, "CGROUP", tmp_path)
    return tmp_path


def test_batches_get_a_third_of_what_is_free(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_for_batches(CPU) == pytest.approx(4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * GIB, 80 * GIB))
    assert memory_for_batches(torch.device("cuda", 1)) == pytest.approx(20)
    (machine / "meminfo").unlink()
    assert free_memory(CPU) is None and memory_for_batches(CPU) == 4
    assert free_memory(torch.device("mps")) is None


@pytest.mark.parametrize(
    ("limit", "free"), [(f"{8 * GIB}\n", 6 * GIB), ("max\n", 12 * GIB), (f"{64 * GIB}", 12 * GIB), (f"{GIB}", 0)]
)
def test_a_container_may_have_less(machine: Path, limit: str, free: int) -> None:
    (machine / "memory.max").write_text(limit)
    (machine / "memory.stat").write_text(f"anon {2 * GIB}\nfile {9 * GIB}\n")
    assert free_memory(CPU) == free


@pytest.mark.skipif(platform.system() != "Linux", reason="other systems have no /proc")
def test_memory_is_seen() -> None:
    free = free_memory(CPU)
    assert free is not None and free > 0
    # The system counts in batches of pages, and other memory comes and goes, in one try of a few all that was there.
    growth, blocks = [], []
    for _ in range(3):
        before = anonymous_memory()
        blocks.append(bytearray(b"x" * 50_000_000))
        growth.append(anonymous_memory() - before)
    assert 45_000_000 < sorted(growth)[1] < 150_000_000 and len(blocks[0]) == 50_000_000


def test_kernels_can_be_deterministic_from_the_first_product_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    use_threads(Settings())
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
