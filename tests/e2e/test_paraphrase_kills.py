"""Random SIGKILLs during paraphrasing, over a cache with some of the answers: the same bytes, and nothing paid twice.

The full size, 20,000 captions and 24 kills: ``python benchmarks/kill_paraphrasing.py``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
# Enough captions for processes that judge to be started.
CAPTIONS, KILLS, CHUNK = 2600, 12, 64
KINDS = {"worker", "part", "table", "verdicts", "judge", "select", "server"}


def test_kills_lose_nothing_and_pay_nothing_twice(tmp_path: Path) -> None:
    sizes = ["--captions", str(CAPTIONS), "--kills", str(KILLS), "--chunk", str(CHUNK)]
    command = [sys.executable, "benchmarks/kill_paraphrasing.py", *sizes, "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    assert done.stdout, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    # They hit a run that was at work (two may be too late), some between a part and its place in the table.
    assert KILLS - 2 <= figures["kills"] == sum(figures["kinds"].values()) <= KILLS
    assert len(set(figures["kinds"])) >= len(KINDS) - 2 and KINDS.issuperset(figures["kinds"])
    assert figures["parts_ahead"] >= 1
    assert figures["same_bytes"]
    # One in twenty captions comes twice, and step 2 asks only once for texts that became alike.
    assert CAPTIONS < figures["distinct"] < 2 * CAPTIONS
    assert figures["cached_rows"] == figures["cached_keys"] == figures["distinct"]
    assert figures["carried"] and figures["distinct_seen"] == figures["distinct"] - figures["carried"]
    assert figures["twice"] == figures["asked"] - figures["distinct_seen"] <= KILLS * CHUNK
    assert figures["good"] and done.returncode == 0
