"""The acceptance of a device: every figure is within its bar here, and one that is not fails the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_acceptance.py"
CORRECTNESS = ("tower", "losses", "features", "resume", "processes")
WRONG = f"""
import runpy, sys
import paraclip_core.clip.encode as encode
right = encode.encode_ragged
encode.encode_ragged = lambda *arguments, **options: right(*arguments, **options) + 0.02
sys.path.insert(0, {str(SCRIPT.parent)!r})
sys.argv = [{str(SCRIPT)!r}, *sys.argv[1:]]
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""


def accept(folder: Path, *command: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run the script where neither Prefect nor DuckDB can be imported; how it ended, and what it wrote."""
    for package in ("prefect", "duckdb"):
        (folder / f"{package}.py").write_text(f"raise ImportError('{package} is not needed')\n")
    environment = os.environ | {"PYTHONPATH": f"{folder}:{SCRIPT.parents[1]}", "OMP_NUM_THREADS": "1"}
    report = folder / "report.json"
    arguments = [sys.executable, *command, "--device", "cpu", "--json", str(report)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert report.exists(), done.stderr
    return done, json.loads(report.read_text())


def test_every_bar_holds(tmp_path: Path) -> None:
    done, report = accept(tmp_path, str(SCRIPT))
    assert done.returncode == 0 and report["passed"], done.stdout
    with_bar = [row["check"] for row in report["rows"] if row["bar"] is not None]
    assert set(with_bar) == set(CORRECTNESS) and done.stdout.count(" ok\n") == len(with_bar) == 10
    measured = [row for row in report["rows"] if row["check"] in ("speed", "kernels")]
    assert len(measured) == 15 and all(row["value"] > 0 for row in measured)


def test_a_wrong_tower_fails_the_run(tmp_path: Path) -> None:
    done, report = accept(tmp_path, "-c", WRONG, "--only", "tower")
    assert done.returncode == 1 and not report["passed"], done.stderr
    assert done.stdout.count("FAILED\n") == 2
