"""The acceptance of a device: every figure is within its bar here, and one that is not fails the run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_acceptance.py"
CORRECTNESS = ("encoder", "losses", "features", "resume")


@pytest.mark.nightly
def test_every_bar_holds_without_prefect_and_duckdb(tmp_path: Path) -> None:
    checks = (*CORRECTNESS, "speed")
    for package in ("prefect", "duckdb"):
        (tmp_path / f"{package}.py").write_text(f"raise ImportError('{package} is not needed')\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{SCRIPT.parents[1]}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, SCRIPT, "--device", "cpu", "--json", tmp_path / "report.json", "--only", *checks]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    with_bar = [row["check"] for row in report["rows"] if row["bar"] is not None]
    assert report["passed"] and set(with_bar) == {*checks} & {*CORRECTNESS}
    assert done.stdout.count(" ok\n") == len(with_bar)
    assert all(row["value"] > 0 for row in report["rows"] if row["check"] == "speed")


def test_a_wrong_encoder_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("gpu_acceptance", SCRIPT)
    assert spec is not None and spec.loader is not None
    acceptance = importlib.util.module_from_spec(spec)
    # Its dataclasses look for their module.
    monkeypatch.setitem(sys.modules, "gpu_acceptance", acceptance)
    spec.loader.exec_module(acceptance)
    right = acceptance.encode_ragged
    monkeypatch.setattr(acceptance, "encode_ragged", lambda *given, **options: right(*given, **options) + 0.02)
    machine = acceptance.Machine(torch.device("cpu"), "small")
    assert acceptance.run(machine, ["encoder"], tmp_path / "report.json") == 1
    assert capsys.readouterr().out.count("FAILED\n") == 2
    assert not json.loads((tmp_path / "report.json").read_text())["passed"]
