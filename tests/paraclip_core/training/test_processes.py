"""Two real processes against one; what training may take of a machine's memory."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from paraclip_core.training import processes
from paraclip_core.training.processes import GIB, anonymous_memory, free_memory, memory_for_batches
from paraclip_core.training.trainer import train

SCRIPT = Path(__file__).with_name("together.py")
Trained = tuple[Path, dict[str, torch.Tensor]]
OPTIONS = {"checkpoint_steps": 4, "batch_size": 13, "distil": 0.5, "ranks": {"weight": 0.5}}


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    assert len([line["step"] for line in lines if "loss" in line]) == len({x["step"] for x in lines})
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.fixture(scope="module")
def alone(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("alone")
    job = tiny.tiny_job(folder, options=OPTIONS)
    train(job)
    return folder, dict(job.clip.model.state_dict())


def assert_near(folder: Path, weights: dict[str, torch.Tensor], alone: Trained) -> None:
    assert losses(folder) == pytest.approx(losses(alone[0]), rel=1e-3)
    for name, value in alone[1].items():
        torch.testing.assert_close(weights[name], value, rtol=1e-2, atol=1e-3)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left in the folders of the script."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, str(SCRIPT), str(folder), json.dumps(OPTIONS)]
    subprocess.run(command, cwd=SCRIPT.parents[3], timeout=900, check=True)
    return folder


def test_two_processes_do_what_one_does(two: Path, alone: Trained) -> None:
    first, expected = losses(two / "undisturbed"), losses(alone[0])
    assert [first[step] for step in (1, 2, 3)] == pytest.approx([expected[step] for step in (1, 2, 3)], rel=1e-5)
    assert_near(two / "undisturbed", load_file(two / "undisturbed/w.st"), alone)


def test_two_processes_have_the_sigmoid_loss_of_one(two: Path, tiny: ModuleType, tmp_path: Path) -> None:
    job = tiny.tiny_job(tmp_path, options=OPTIONS, base=tiny.SIGMOID)
    train(job)
    weights = dict(job.clip.model.state_dict())
    assert (float(weights["logit_scale"]), float(weights["logit_bias"])) == (3.0, -10.0), "probabilities keep a meaning"
    assert_near(two / "sigmoid", load_file(two / "sigmoid/w.st"), (tmp_path, weights))


def test_a_killed_run_of_two_goes_on_with_two_to_the_same_bytes(two: Path) -> None:
    # There is more than the checkpoint has, and it is done again.
    assert max(losses(two / "killed")) == 28 and not (two / "killed/w.st").exists()
    assert max((two / "killed/scratch").glob("step-*")).name == "step-00000024.safetensors"
    assert [(two / name / "validations").read_text() for name in ("undisturbed", "again")] == ["9", "4"]
    for file in ("w.st", "training_log.jsonl"):
        assert (two / "again" / file).read_bytes() == (two / "undisturbed" / file).read_bytes()


def test_a_run_goes_on_with_one_process(two: Path, tiny: ModuleType, tmp_path: Path, alone: Trained) -> None:
    shutil.copytree(two / "killed", tmp_path, dirs_exist_ok=True)
    job = tiny.tiny_job(tmp_path, options=OPTIONS)
    train(job)
    assert_near(tmp_path, dict(job.clip.model.state_dict()), alone)


CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the kernel says of a machine with 12 GiB free, in no container."""
    (tmp_path / "meminfo").write_text(f"MemTotal: {24 * 2**20} kB\nMemAvailable:   {12 * 2**20} kB\n")
    monkeypatch.setattr(processes, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(processes, "CGROUP", tmp_path)
    return tmp_path


def test_batches_get_a_third_of_what_is_free(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_for_batches(CPU) == pytest.approx(4)
    assert memory_for_batches(CPU, 2) == pytest.approx(2)
    # Each process has a GPU of its own.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * GIB, 80 * GIB))
    assert memory_for_batches(torch.device("cuda", 1), 2) == pytest.approx(20)
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
