"""What training may take of a machine's memory, and its kernels."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from paraclip.tasks.training.data import use_threads
from paraclip_core.config import Settings
from paraclip_core.training import process
from paraclip_core.training.process import free_memory

CPU = torch.device("cpu")
GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the kernel says of a machine with 12 GiB free, in no container."""
    (tmp_path / "meminfo").write_text(f"MemTotal: {24 * 2**20} kB\nMemAvailable:   {12 * 2**20} kB\n")
    monkeypatch.setattr(process, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(process, "CGROUP", tmp_path)
    return tmp_path


def test_free_memory_may_be_unknown(machine: Path) -> None:
    (machine / "meminfo").unlink()
    assert free_memory(CPU) is None and free_memory(torch.device("mps")) is None


@pytest.mark.parametrize(
    ("limit", "free"), [(f"{8 * GIB}\n", 6 * GIB), ("max\n", 12 * GIB), (f"{64 * GIB}", 12 * GIB), (f"{GIB}", 0)]
)
def test_a_container_may_have_less(machine: Path, limit: str, free: int) -> None:
    (machine / "memory.max").write_text(limit)
    (machine / "memory.stat").write_text(f"anon {2 * GIB}\nfile {9 * GIB}\n")
    assert free_memory(CPU) == free


def test_kernels_can_be_deterministic_from_the_first_product_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    use_threads(Settings())
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
