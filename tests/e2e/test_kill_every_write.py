"""Calls that change a file kill their stage or fail, whichever library makes them, and it ends with the same bytes.

More of them: ``python benchmarks/kill_every_write.py --kills 40 --fault kill``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler: cc"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs LD_PRELOAD"),
]

ROOT = Path(__file__).parents[2]


def met(folder: Path, *options: str) -> dict[str, Any]:
    """The figures of the benchmark, which worked in `folder`."""
    folder.mkdir()
    command = [sys.executable, "benchmarks/kill_every_write.py", "--folder", str(folder), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1000, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_next_try_ends_with_the_same_bytes(tmp_path: Path) -> None:
    figures = met(tmp_path / "work", "--kills", "3")
    assert figures["good"] and "all_answered" in figures["kills"]
    assert all(kills >= 3 for kills in figures["kills"].values())
    assert all(calls >= 25 for calls in figures["calls"].values())


@pytest.mark.parametrize("fault", [pytest.param("error", marks=pytest.mark.nightly), "full"])
def test_a_disk_that_fails_is_told_and_costs_no_byte(tmp_path: Path, fault: str) -> None:
    stages = "ingest,paraphrase_1,all_answered,finetune"
    # A call that fails may be one that the stage can do without, so several are met.
    figures = met(tmp_path / "work", "--kills", "6", "--stages", stages, "--fault", fault)
    assert figures["good"]
    assert all(figures["kills"].values())
