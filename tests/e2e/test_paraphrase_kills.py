"""Random SIGKILLs of worker, server and writer during paraphrasing: the same bytes, and nothing paid twice.

The full size, 20,000 captions and 20 kills: ``python benchmarks/kill_paraphrasing.py``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
CAPTIONS, KILLS, CHUNK = 1200, 8, 64


def test_kills_lose_nothing_and_pay_nothing_twice(tmp_path: Path) -> None:
    sizes = ["--captions", str(CAPTIONS), "--kills", str(KILLS), "--chunk", str(CHUNK)]
    command = [sys.executable, "benchmarks/kill_paraphrasing.py", *sizes, "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # They hit a run that was at work (the last one may be too late), some between a segment and its place in the index.
    assert KILLS - 1 <= found["kills"] == sum(found["kinds"].values()) <= KILLS
    assert set(found["kinds"]) == {"worker", "server", "segment", "index"}
    assert found["unindexed"] >= 1
    assert found["same_bytes"]
    # One in twenty captions comes twice, and step 2 asks only once for texts that became alike.
    assert CAPTIONS < found["distinct"] < 2 * CAPTIONS
    assert found["distinct_seen"] == found["kept_rows"] == found["kept_keys"] == found["distinct"]
    assert 0 < found["twice"] == found["asked"] - found["distinct"] <= KILLS * CHUNK
    assert found["good"] and done.returncode == 0
