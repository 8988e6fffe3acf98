"""Each stage is killed at calls that change a file, whichever library makes them, and ends with the same bytes.

More of them: ``python benchmarks/kill_every_write.py --kills 40``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler: cc"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs LD_PRELOAD"),
]

ROOT = Path(__file__).parents[2]


def test_the_next_try_ends_with_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/kill_every_write.py", "--kills", "3", "--folder", str(tmp_path / "work")]
    (tmp_path / "work").mkdir()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1000, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["good"]
    assert all(kills >= 3 for kills in found["kills"].values())
    assert all(calls >= 25 for calls in found["calls"].values())
